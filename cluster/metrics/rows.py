"""One metric as a row of the table."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus' kinds that are used here. A counter's samples end in `_total`, as its clients add it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """Its name without `_total`, its kind, and what it says. `labels` beside `model_name`, which all have.

    `unit` is a word for people; base units stand in the name, too.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""

    @property
    def sample(self) -> str:
        """The name that queries use."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def counter(name: str, help: str, *labels: str, unit: str = "") -> Metric:
    """Only rises; starts again from 0 with what it counts."""
    return Metric(name, Kind.COUNTER, help, labels, unit)


def gauge(name: str, help: str, *labels: str, unit: str = "") -> Metric:
    """What is so now."""
    return Metric(name, Kind.GAUGE, help, labels, unit)


def histogram(name: str, help: str, *labels: str, unit: str = "seconds") -> Metric:
    """Counts by bound, with their sum."""
    return Metric(name, Kind.HISTOGRAM, help, labels, unit)
