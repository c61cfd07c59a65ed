"""Counts by bound, as Prometheus has them, from values or from counts that are by the same bounds already."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Histogram:
    """A value belongs to the first bound that it does not exceed, else above the last. Owns: the counts."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add_counts(self, counts: Sequence[int], total: float) -> None:
        """Count many by their classes; together they are `total`."""
        for place, number in enumerate(counts):
            self.counts[place] += number
        self.sum += total

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """(bound, how many values up to it), as the exposition formats want it."""
        labels, so_far, found = (*map(_bound, self.bounds), "+Inf"), 0, []
        for label, number in zip(labels, self.counts, strict=True):
            so_far += number
            found.append((label, float(so_far)))
        return found


def merged(histograms: Iterable[Histogram], bounds: tuple[float, ...]) -> Histogram:
    """All of one set of bounds together."""
    whole = Histogram(bounds)
    for each in histograms:
        whole.add_counts(each.counts, each.sum)
    return whole


def _bound(value: float) -> str:
    return repr(float(value))
