"""How far off predictions are: the errors of those that came true lately, and the safety that follows from them."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

PRIOR = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.15, 0.2)
"""Errors that it starts with, and falls back to where nothing comes true any more."""

MAX_ERRORS = 256
MAX_AGE_S = 60.0
BOUNDS = (-0.25, 1.0)
"""Of the safety. Without an upper one, bad luck could turn everybody away, and then nothing would be learned again."""


class Margin:
    """The safety of one kind of prediction.

    Owns: the last errors. An error is relative to what was predicted, or to half the target where that is more: what
    counts is how far off it is where a request is near its target, and a prediction of next to nothing has large
    relative errors that mean nothing.
    """

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._errors: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = list(PRIOR)
        self.safety = 0.0
        self._settle()

    def bound(self, predicted: float, target: float) -> float:
        """What will not be exceeded with the quantile's probability."""
        return predicted + self.safety * max(predicted, target / 2)

    def learn(self, predicted: float, actual: float, target: float, now: float) -> None:
        """A prediction has come true, more or less."""
        scale = max(predicted, target / 2)
        if scale <= 0.0:
            return
        error = (actual - predicted) / scale
        self._errors.append((now, error))
        insort(self._sorted, error)
        if len(self._errors) > MAX_ERRORS:
            self._drop()
        self.forget(now)

    def forget(self, now: float) -> None:
        """Errors of another time say nothing about now."""
        while self._errors and now - self._errors[0][0] > MAX_AGE_S:
            self._drop()
        self._settle()

    def reset(self) -> None:
        """Other predictions follow: begin again, but where errors are smaller than those that one begins with."""
        if self.safety <= _at(self._quantile, PRIOR):
            return
        self._errors.clear()
        self._sorted = list(PRIOR)
        self._settle()

    def _drop(self) -> None:
        _, error = self._errors.popleft()
        del self._sorted[bisect_left(self._sorted, error)]

    def _settle(self) -> None:
        self.safety = min(BOUNDS[1], max(BOUNDS[0], _at(self._quantile, self._sorted)))


def _at(quantile: float, ordered: Sequence[float]) -> float:
    """On a straight line between the two that are next to it."""
    place = quantile * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
