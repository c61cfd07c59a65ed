"""Medians, and how far the repeats lie apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """The repeats of one number: their median and their ends."""

    median: float
    least: float
    most: float

    def text(self, form: str = ".2f") -> str:
        """As `median (least to most)`."""
        return f"{self.median:{form}} ({self.least:{form}} to {self.most:{form}})"


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(median(values), min(values), max(values))


def paired(upper: Sequence[float], lower: Sequence[float]) -> Spread:
    """The ratio of two arms, repeat by repeat: neighbours in time, so that a drift of the machine cancels."""
    return spread([a / b for a, b in zip(upper, lower, strict=True)])
