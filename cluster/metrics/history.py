"""The last ten minutes, a sample a second: what the dashboard draws, and what rates over a window are taken from."""

from collections import deque
from dataclasses import dataclass

from cluster.metrics.model_work import ModelWork
from core.ids import NodeId
from core.stats import NodeStats

NUM_SAMPLES = 600
WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class NodeWork:
    """Estimated work of one node's life so far."""

    flops: float
    bytes_read: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters and states at one moment; `at` is of the monotonic clock. `roles` counts nodes by role."""

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


class History:
    """Owns: the samples, oldest first."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=NUM_SAMPLES)

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
