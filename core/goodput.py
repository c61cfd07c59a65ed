"""The one definition of goodput: requests per second that met both their TTFT and their TPOT target.

Refused, expired and failed requests are misses. Cancelled ones are counted beside and left out. The TPOT of an answer
of
one token counts as met.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from core.request import SLO


class Outcome(StrEnum):
    """How a request ended; each ends exactly once."""

    FINISHED = "finished"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What one request got, seen from the client. Times are None where no token came."""

    outcome: Outcome
    ttft_s: float | None = None
    last_token_s: float | None = None
    num_tokens: int = 0

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None for an answer of at most one token."""
        if self.ttft_s is None or self.last_token_s is None or self.num_tokens < 2:
            return None
        return (self.last_token_s - self.ttft_s) / (self.num_tokens - 1)


@dataclass(frozen=True, slots=True)
class Goodput:
    """The account of many requests against one SLO. `attainment` is None where nothing was counted."""

    num_counted: int
    num_met: int
    num_cancelled: int
    duration_s: float

    @property
    def attainment(self) -> float | None:
        """The share of counted requests that met the SLO, 0 to 1."""
        return self.num_met / self.num_counted if self.num_counted else None

    @property
    def goodput_rps(self) -> float:
        """Requests per second that met the SLO."""
        return self.num_met / self.duration_s if self.duration_s > 0 else 0.0


def meets(record: RequestRecord, slo: SLO) -> bool:
    """Whether a request met both targets."""
    if record.outcome is not Outcome.FINISHED or record.ttft_s is None:
        return False
    tpot_s = record.tpot_s
    return record.ttft_s <= slo.ttft_s and (tpot_s is None or tpot_s <= slo.tpot_s)


def goodput(records: Iterable[RequestRecord], slo: SLO, duration_s: float) -> Goodput:
    """Counts `records` of a run of `duration_s` seconds against `slo`."""
    counted = met = cancelled = 0
    for record in records:
        if record.outcome is Outcome.CANCELLED:
            cancelled += 1
            continue
        counted += 1
        met += meets(record, slo)
    return Goodput(counted, met, cancelled, duration_s)
