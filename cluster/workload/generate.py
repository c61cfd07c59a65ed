"""Workloads from statistics: the same seed gives the same requests."""

from dataclasses import dataclass
from itertools import islice, takewhile
from random import Random

from cluster.workload.items import WorkItem, Workload
from cluster.workload.prefixes import PrefixWriter
from cluster.workload.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a workload: for so many seconds, or so many requests; with both, whatever ends first."""

    seconds: float | None = None
    requests: int | None = None


def generated(name: str, statistics: Statistics, rate_rps: float, extent: Extent, seed: int | str) -> Workload:
    """A workload of these statistics at a mean rate.

    Moments, lengths and prefixes have dice of their own: at another rate the same requests come at other times.
    """
    dice = {purpose: Random(f"{seed} {purpose}") for purpose in ("arrivals", "lengths", "prefixes")}
    assert extent.seconds is not None or extent.requests is not None, "a workload needs an end"
    run_s = extent.seconds if extent.seconds is not None else (extent.requests or 0) / rate_rps
    times = statistics.arrivals.times(rate_rps, run_s, dice["arrivals"])
    if extent.seconds is not None:
        times = takewhile(lambda at_s: at_s < run_s, times)
    writer = None if statistics.prefixes is None else PrefixWriter(statistics.prefixes, dice["prefixes"])
    items = list[WorkItem]()
    for at_s in islice(times, extent.requests):
        prompt, output = statistics.prompt.draw(dice["lengths"]), statistics.output.draw(dice["lengths"])
        items.append(WorkItem(at_s, prompt, output, writer.block_ids(prompt) if writer else ()))
    return Workload(name, tuple(items))
