"""The requests that wait for a route, in the order in which they are offered one: class, fair share, urgency."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from core.ids import RequestId
from scheduler.flight import Flight

LATE_S = 5.0
"""A request that is late already goes behind those that can still be in time, as if it were due so much later."""

MAX_IDLE = 256

NUM_PACED, LEAST_PACED = 32, 4
"""Starts that the pace of the line is measured by, at most and at least."""

_Place = tuple[float, int, Flight]
"""When it is due, and a number that tells equals apart."""


@dataclass(slots=True)
class _Tenant:
    """One tenant's requests of one class, most urgent first. `served` is the virtual time up to which it has had its
    share: tokens over its weight. `num_tokens` wait."""

    served: float = 0.0
    num_tokens: int = 0
    places: list[_Place] = field(default_factory=list)


@dataclass(slots=True)
class _Class:
    """One priority: its tenants, and the virtual time, which is that of the tenant that was served last."""

    now: float = 0.0
    tenants: dict[str, _Tenant] = field(default_factory=dict)


class WaitingQueue:
    """Higher priority first; among tenants of one class by fair queueing on tokens; of one tenant the most urgent.

    Owns: the order, and each tenant's account. A request is in it exactly while its state is WAITING. A tenant that has
    waited for nothing begins at the present virtual time: idling saves up nothing. Of tenants that wait for nothing, at
    most `MAX_IDLE` accounts are kept, of those that had most.
    """

    def __init__(self, shares: tuple[tuple[str, float], ...] = ()) -> None:
        self.num_tokens = 0
        self._shares = dict(shares)
        self._classes: dict[int, _Class] = {}
        self._due: dict[RequestId, tuple[int, str, _Place]] = {}
        self._num_added = 0
        self._served_at: deque[float] = deque(maxlen=NUM_PACED)

    def __len__(self) -> int:
        return len(self._due)

    def add(self, flight: Flight, due_at: float) -> None:
        """Queue it. `due_at`: when its first token is due, by the scheduler's clock."""
        priority, name = flight.request.priority, flight.request.tenant
        of_class = self._classes.setdefault(priority, _Class())
        tenant = of_class.tenants.setdefault(name, _Tenant())
        if not tenant.places:
            tenant.served = max(tenant.served, of_class.now)
        self._num_added += 1
        place = (due_at, self._num_added, flight)
        insort(tenant.places, place)
        self._due[flight.request.id] = priority, name, place
        tenant.num_tokens += flight.num_tokens
        self.num_tokens += flight.num_tokens

    def remove(self, flight: Flight) -> None:
        """Take it out: it ends."""
        priority, name, place = self._due.pop(flight.request.id)
        tenant = self._classes[priority].tenants[name]
        del tenant.places[bisect_left(tenant.places, place)]
        tenant.num_tokens -= flight.num_tokens
        self.num_tokens -= flight.num_tokens

    def serve(self, flight: Flight, num_tokens: float, now: float) -> None:
        """Take it out: it has a route. Its tenant is charged so many tokens."""
        if len(self._due) > 1:
            self._served_at.append(now)
        else:
            self._served_at.clear()
        priority, name, _ = self._due[flight.request.id]
        of_class = self._classes[priority]
        tenant = of_class.tenants[name]
        of_class.now = max(of_class.now, tenant.served)
        tenant.served += num_tokens / self._shares.get(name, 1.0)
        self.remove(flight)

    def starts_per_s(self, now: float) -> float | None:
        """How fast the line moves, since it began and lately; None where that cannot be told yet."""
        if len(self._served_at) < LEAST_PACED or now <= self._served_at[0]:
            return None
        return len(self._served_at) / (now - self._served_at[0])

    def make_late(self, now: float) -> None:
        """Those whose time is over go behind those that can still be in time. Accounts without meaning are dropped."""
        for of_class in self._classes.values():
            for name, tenant in list(of_class.tenants.items()):
                late = [place for place in tenant.places if place[0] < now and not place[2].is_late]
                for due_at, number, flight in late:
                    flight.is_late = True
                    del tenant.places[bisect_left(tenant.places, (due_at, number, flight))]
                    place = (due_at + LATE_S, number, flight)
                    insort(tenant.places, place)
                    self._due[flight.request.id] = flight.request.priority, name, place
            _drop_idle(of_class)
        for priority in [each for each, of_class in self._classes.items() if not of_class.tenants]:
            del self._classes[priority]

    def tokens_before(self, flight: Flight) -> float:
        """Prompt tokens that will be served before one more request of this kind, if it came now and nobody after it.

        All of higher classes; in its own what each other tenant has waiting, but no more than it has itself.
        """
        priority, name = flight.request.priority, flight.request.tenant
        higher = [of_class for each, of_class in self._classes.items() if each > priority]
        number = sum(tenant.num_tokens for of_class in higher for tenant in of_class.tenants.values())
        own = self._classes.get(priority)
        if own is None:
            return float(number)
        mine = own.tenants.get(name)
        before = mine.num_tokens if mine is not None else 0
        share = (before + flight.num_tokens) / self._shares.get(name, 1.0)
        others = (
            min(tenant.num_tokens, share * self._shares.get(other, 1.0))
            for other, tenant in own.tenants.items()
            if other != name and tenant.places
        )
        return number + before + sum(others)

    def flights(self) -> Iterator[Flight]:
        """All, in order, as if each were served with its prompt's tokens. Who is served or removed on the way does not
        disturb it; who is added may be left out."""
        for priority in sorted(self._classes, reverse=True):
            yield from self._of_class(self._classes[priority])

    def _of_class(self, of_class: _Class) -> Iterator[Flight]:
        waiting = [(each.served, name) for name, each in of_class.tenants.items() if each.places]
        if len(waiting) == 1:
            yield from [place[2] for place in of_class.tenants[waiting[0][1]].places]
            return
        heapify(waiting)
        left: dict[str, Iterator[_Place]] = {}
        while waiting:
            served, name = heappop(waiting)
            if name not in left:
                left[name] = iter(list(of_class.tenants[name].places))
            place = next(left[name], None)
            if place is not None:
                weight = self._shares.get(name, 1.0)
                heappush(waiting, (served + place[2].num_tokens / weight, name))
                yield place[2]


def _drop_idle(of_class: _Class) -> None:
    """Accounts of tenants that wait for nothing: all that are no debt, and the smallest debts of too many."""
    idle = [(tenant.served, name) for name, tenant in of_class.tenants.items() if not tenant.places]
    if len(idle) == len(of_class.tenants):
        of_class.tenants.clear()
        return
    idle.sort(reverse=True)
    for place, (served, name) in enumerate(idle):
        if served <= of_class.now or place >= MAX_IDLE:
            del of_class.tenants[name]
