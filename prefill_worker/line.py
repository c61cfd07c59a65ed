"""Prompts with tokens left to plan, in the order in which steps take them: by class, then by when they are due."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import merge
from itertools import groupby
from operator import itemgetter

from core.ids import AttemptId
from prefill_worker.attempt import Prefill

LATE_S = 5.0
"""Whose first token is late already goes behind those that can still be in time, as if it were due so much later."""

_Place = tuple[int, float, int, Prefill]
"""Lower is sooner: the priority with its sign turned, when the first token is due, and a number that rises."""

_CLASS, _DUE = itemgetter(0), itemgetter(1)


class Line:
    """Higher priority first; then who is due first, whether its prompt was begun or not; who is late lets others pass.

    Owns: the order. A place stays the same for as long as an attempt is in it, so each comes to the front in time: who
    comes later is due later.
    """

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._of: dict[AttemptId, _Place] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def has_offline(self) -> bool:
        """Whether any of them is of the offline class."""
        return bool(self._places) and self._places[-1][0] > 0

    @property
    def num_offline_tokens(self) -> int:
        """Tokens of that class that are to be planned."""
        first = bisect_left(self._places, (1,))
        return sum(place[3].num_tokens - place[3].num_planned for place in self._places[first:])

    def add(self, prefill: Prefill) -> None:
        """It has tokens to compute."""
        self._num_added += 1
        due_at = prefill.submitted_at + prefill.asked.due_s
        place = self._of[prefill.id] = (-prefill.asked.request.priority, due_at, self._num_added, prefill)
        insort(self._places, place)

    def remove(self, prefill: Prefill) -> None:
        """All its tokens are planned, or it is not wanted any more; nothing where it is not here."""
        place = self._of.pop(prefill.id, None)
        if place is not None:
            del self._places[bisect_left(self._places, place)]

    def in_order(self, now: float, *, with_offline: bool = True) -> Iterator[Prefill]:
        """All, or all but the offline class. May be changed meanwhile: that shows with the next call."""
        if len(self._places) == 1 and with_offline:
            yield self._places[0][3]
            return
        for key, of_class in groupby(list(self._places), _CLASS):
            if key > 0 and not with_offline:
                return
            places = list(of_class)
            num_late = bisect_left(places, now, key=_DUE)
            late = [(place[1] + LATE_S, place[2], place[3]) for place in places[:num_late]]
            in_time = ((place[1], place[2], place[3]) for place in places[num_late:])
            for _, _, prefill in merge(late, in_time):
                yield prefill
