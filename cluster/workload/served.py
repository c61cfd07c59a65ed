"""What became of one request of a workload, simulated or live: the line that every report is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.workload.gaps import Gaps
from cluster.workload.items import WorkItem
from core.goodput import Outcome, RequestRecord, meets
from core.request import SLO
from core.stats import Timing

_NO_GAPS: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request's fate, seen from its client; times in seconds since it was sent, None where no token came.

    `num_tokens` are those that arrived. `gaps` are the times between them, by class (`cluster.workload.gaps`).
    `timing` is the ledger where it was told. `slo` is the one it is held to.
    """

    item: WorkItem
    slo: SLO
    outcome: Outcome
    num_tokens: int = 0
    ttft_s: float | None = None
    last_token_s: float | None = None
    gaps: Gaps = field(default_factory=lambda: _NO_GAPS)
    timing: Timing | None = None
    num_cached_tokens: int = 0

    @property
    def record(self) -> RequestRecord:
        """What goodput is counted from."""
        return RequestRecord(self.outcome, self.ttft_s, self.last_token_s, self.num_tokens)

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None for an answer of at most one token."""
        return self.record.tpot_s

    @property
    def is_met(self) -> bool:
        """Whether it met both targets."""
        return meets(self.record, self.slo)
