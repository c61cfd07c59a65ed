"""Virtual time: a heap of calls to make, in the order of their moments."""

import heapq
from collections.abc import Callable
from random import Random


class Loop:
    """Makes calls at their virtual time; equal times in the order in which they were asked for.

    Owns: time, and the one source of chance of a run (handed in, seeded).
    """

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.num_calls = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._asked = 0

    def at(self, when: float, call: Callable[..., None], *args: object) -> None:
        """Call `call(*args)` at `when`, or now where that has passed."""
        self._asked += 1
        heapq.heappush(self._heap, (max(when, self.now), self._asked, call, args))

    def after(self, delay_s: float, call: Callable[..., None], *args: object) -> None:
        """Call `call(*args)` in `delay_s` seconds."""
        self._asked += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._asked, call, args))

    def step(self) -> None:
        """Make the next call, whenever that is."""
        self.now, _, call, args = heapq.heappop(self._heap)
        self.num_calls += 1
        call(*args)

    def run(self, until: float) -> None:
        """Make all calls up to the moment `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.step()
        self.now = max(self.now, until)
