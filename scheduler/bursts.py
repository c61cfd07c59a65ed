"""How unevenly requests come, whatever their rate: in bursts, numbers of one moment say little of the next."""

from collections import deque

NUM_GAPS = 256


class Bursts:
    """Owns: the last gaps between requests. Unlike what plans rest on, they outlast steps."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=NUM_GAPS)
        self._last_at: float | None = None

    def note(self, now: float) -> None:
        """A request comes."""
        if self._last_at is not None:
            self._gaps.append(now - self._last_at)
        self._last_at = now

    def dispersion(self) -> float:
        """The variance of numbers of requests over their mean: 1 as by chance, more where they come in bursts.

        That of many numbers is, where gaps are independent, the variance of these over their squared mean.
        """
        num = len(self._gaps)
        mean = sum(self._gaps) / num if num else 0.0
        return max(1.0, sum((gap - mean) ** 2 for gap in self._gaps) / num / mean**2) if mean > 0.0 else 1.0
