"""Ten minutes of samples, one a second, and a day of them, one a minute: what the dashboard draws, and rates."""

from collections import deque
from dataclasses import dataclass, replace

from cluster.metrics.model_work import ModelWork
from core.ids import NodeId
from core.stats import NodeStats

NUM_SAMPLES = 600
NUM_MINUTES = 24 * 60
SAMPLES_PER_MINUTE = 60
WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class NodeWork:
    """Estimated work of one node's life so far."""

    flops: float
    bytes_read: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters and states at one moment; `at` is of the monotonic clock.

    `roles` counts nodes by role, `blocks` those of all pools by state. Requests that were turned away at the door are
    not among `num_ended`. `wanted_nodes` is None where nobody said.
    """

    number: int
    at: float
    num_met: int
    num_counted: int
    num_ended: int
    generation_tokens: int
    num_open: int
    running_rows: int
    queued_tokens: int
    kv_bytes: int
    roles: tuple[tuple[str, int], ...]
    works: dict[NodeId, NodeWork]
    num_turned_away: int = 0
    incoming: int = 0
    leases: int = 0
    blocks: tuple[tuple[str, int], ...] = ()
    wanted_nodes: int | None = None


class History:
    """Owns: the samples, oldest first; of those that `minutes` keeps for longer, without the work of nodes."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=NUM_SAMPLES)
        self.minutes: deque[Sample] = deque(maxlen=NUM_MINUTES)

    def add(self, sample: Sample) -> None:
        """The next one; the first of each minute is kept for a day."""
        self.samples.append(sample)
        if sample.number % SAMPLES_PER_MINUTE == 1:
            self.minutes.append(replace(sample, works={}))

    @property
    def next_number(self) -> int:
        """That of the next sample; numbers begin at 1."""
        return self.samples[-1].number + 1 if self.samples else 1

    def rates(self, node: NodeId) -> NodeWork | None:
        """Of one node over the last `WINDOW_S`, per second; None before it has been seen twice."""
        seen = [each for each in self.samples if node in each.works]
        if len(seen) < 2:
            return None
        last = seen[-1]
        first = next(each for each in seen if each.at >= last.at - WINDOW_S)
        seconds = last.at - first.at
        if seconds <= 0:
            return None
        was, now = first.works[node], last.works[node]
        return NodeWork((now.flops - was.flops) / seconds, (now.bytes_read - was.bytes_read) / seconds)


def work_of(stats: NodeStats, model: ModelWork | None) -> NodeWork | None:
    """The estimate for what a node reported; None where the model is not one that can be estimated."""
    return None if model is None else NodeWork(model.flops(stats.work), model.bytes_read(stats.work))
