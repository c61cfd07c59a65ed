"""The metrics as text, in the form that a scraper asks for."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from cluster.metrics.observation import Observation
from cluster.metrics.readings import Readings
from cluster.metrics.table import METRICS


@dataclass(frozen=True, slots=True)
class MetricsText:
    """A body with its content type."""

    content_type: str
    body: bytes


class _Look(Collector):
    """What one look found."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Family]:
        yield from self._families


class Exposition:
    """One observation for scrapers, with the process's own CPU and memory."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._process = ProcessCollector(registry=None)

    async def text(self, accept: str = "") -> MetricsText:
        """As the header `accept` asks: OpenMetrics or Prometheus' own text.

        The look is taken in the loop, as one moment; the text, which takes ten times as long, is made on a thread.
        """
        encode, content_type = choose_encoder(accept)
        look = _Look((*readings_of(self._observation).families(), *self._process.collect()))
        return MetricsText(content_type, await asyncio.to_thread(encode, look))


def readings_of(observation: Observation) -> Readings:
    """One look."""
    readings = Readings(METRICS, observation.gateway.model.name)
    observation.read(readings)
    return readings
