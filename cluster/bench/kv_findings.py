"""What a run of `penstock bench kv` found, and the ratios that are taken from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from cluster.bench.kv_plan import Cell, KVPlan, size_text
from cluster.bench.spread import Spread, paired


@dataclass(slots=True)
class Times:
    """Seconds of a cell's transfers and of the copies between them, one list a repeat."""

    seconds: list[list[float]] = field(default_factory=list)
    copy: list[list[float]] = field(default_factory=list)

    @property
    def medians(self) -> list[float]:
        """A transfer's seconds, repeat by repeat."""
        return [median(turn) for turn in self.seconds]

    @property
    def share(self) -> Spread:
        """Bandwidth as a fraction of memcpy's, taken repeat by repeat."""
        return paired([median(turn) for turn in self.copy], self.medians)

    def all(self) -> list[float]:
        """Every single transfer, the fastest first."""
        return sorted(each for turn in self.seconds for each in turn)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that such a share of them does not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Handoff:
    """One request on a cluster of a prefill and a decode node. Seconds.

    `stamps`: when the client had each token. `alone`: one fetch of the whole prompt, measured right after it.
    """

    model: str
    num_prompt_tokens: int
    stamps: tuple[float, ...]
    reserve_s: float
    tail_s: float
    queue_decode_s: float
    prefill_s: float
    alone_s: float

    @property
    def gap_s(self) -> float:
        """From the first token, which leaves at the prefill's end, to the second: both come the same way."""
        return self.stamps[1] - self.stamps[0]

    @property
    def step_s(self) -> float:
        """One decode step: the median gap between later tokens."""
        return median(b - a for a, b in zip(self.stamps[1:-1], self.stamps[2:], strict=True))

    @property
    def tax(self) -> float:
        """What the handoff adds between the two tokens, over the fetch alone."""
        return (self.gap_s - self.step_s) / self.alone_s

    @property
    def ledger_tax(self) -> float:
        """The same by the request's own ledger: what its nodes measured, without messages on their way."""
        return (self.reserve_s + self.tail_s + self.queue_decode_s) / self.alone_s


@dataclass(slots=True)
class KVFindings:
    """All that a run measured. `absent`: what this machine has not; `failed`: transports of ours that did not work."""

    plan: KVPlan
    times: dict[Cell, Times] = field(default_factory=dict)
    handoffs: list[Handoff] = field(default_factory=list)
    facts: dict[str, dict[str, object]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def note(self, cell: Cell, seconds: list[float], copy: list[float]) -> None:
        """One more turn of a cell."""
        times = self.times.setdefault(cell, Times())
        times.seconds.append(seconds)
        times.copy.append(copy)

    def leave_out(self, cell: Cell, why: str) -> None:
        """A cell that cannot be measured, whatever was seen of it before."""
        self.times.pop(cell, None)
        how = "scattered" if cell.is_scattered else "contiguous"
        self.absent[f"{cell.transport}, {cell.layout}, {size_text(cell.num_bytes)} {how}"] = why

    def ratio(self, upper: Cell, lower: Cell) -> Spread | None:
        """Time over time, repeat by repeat; None where one of them was not measured."""
        both = self.times.get(upper), self.times.get(lower)
        if both[0] is None or both[1] is None:
            return None
        return paired(both[0].medians, both[1].medians)

    def scatter(self, cell: Cell) -> Spread | None:
        """What scattering costs: the cell's time over the same in one piece."""
        return self.ratio(replace(cell, is_scattered=True), replace(cell, is_scattered=False))

    def handoffs_of(self, model: str, length: int) -> list[Handoff]:
        """Those of one prompt length."""
        return [each for each in self.handoffs if (each.model, each.num_prompt_tokens) == (model, length)]
