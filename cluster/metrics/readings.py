"""Values under the names of the table, on their way to Prometheus' text."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from cluster.metrics.histogram import Histogram
from cluster.metrics.rows import Kind, Metric

ENGINE = "0"
VLLM_PREFIX = "vllm:"


class Readings:
    """What was read in one look. A row that nothing was read for is not told at all.

    Invariant: a row's values are all of its kind, with as many labels as it has.
    """

    def __init__(self, rows: Mapping[str, Metric], model: str) -> None:
        self._rows = rows
        self._model = model
        self._numbers: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        self._histograms: dict[str, list[tuple[tuple[str, ...], Histogram]]] = {}

    def put(self, name: str, value: float, *labels: str) -> None:
        """A counter's or a gauge's value."""
        row = self._rows[name]
        assert row.kind is not Kind.HISTOGRAM and len(labels) == len(row.labels), name
        self._numbers.setdefault(name, []).append((labels, value))

    def put_histogram(self, name: str, value: Histogram, *labels: str) -> None:
        """A histogram as it is now."""
        row = self._rows[name]
        assert row.kind is Kind.HISTOGRAM and len(labels) == len(row.labels), name
        self._histograms.setdefault(name, []).append((labels, value))

    def values(self, name: str) -> tuple[tuple[tuple[str, ...], float], ...]:
        """A counter's or a gauge's values with their labels."""
        return tuple(self._numbers.get(name, ()))

    def totals(self) -> dict[str, float]:
        """Every counter and gauge by the name of its samples, summed over its labels; how many values of histograms."""
        numbers = {self._rows[name].sample: sum(value for _, value in found) for name, found in self._numbers.items()}
        counts = {f"{name}_count": sum(each.count for _, each in found) for name, found in self._histograms.items()}
        return numbers | counts

    def families(self) -> Iterator[Family]:
        """In the table's order."""
        for name, row in self._rows.items():
            if name in self._numbers or name in self._histograms:
                yield self._family(row)

    def _family(self, row: Metric) -> Family:
        fixed = (self._model, ENGINE) if row.name.startswith(VLLM_PREFIX) else (self._model,)
        names = (("model_name", "engine") if len(fixed) == 2 else ("model_name",)) + row.labels
        if row.kind is Kind.HISTOGRAM:
            histograms = HistogramMetricFamily(row.name, row.help, labels=names)
            for labels, value in self._histograms[row.name]:
                histograms.add_metric((*fixed, *labels), value.buckets(), value.sum)
            return histograms
        kind = CounterMetricFamily if row.kind is Kind.COUNTER else GaugeMetricFamily
        family: CounterMetricFamily | GaugeMetricFamily = kind(row.name, row.help, labels=names)
        for labels, number in self._numbers[row.name]:
            family.add_metric((*fixed, *labels), number)
        return family
