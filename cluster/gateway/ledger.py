"""Where one request's time went, seen from the gateway: parts + unaccounted = wall."""

from dataclasses import dataclass

from core.goodput import Outcome, RequestRecord
from core.ids import RequestId
from core.stats import Timing


@dataclass(frozen=True, slots=True)
class RequestLedger:
    """One ended request. Seconds since it was received; `timing` is its last attempt's, the gateway's admit added.

    `code` is the error's, empty where it finished. `ttft_s` and `last_token_s` are None where no token came.
    """

    id: RequestId
    outcome: Outcome
    code: str
    num_prompt_tokens: int
    num_tokens: int
    num_attempts: int
    timing: Timing
    wall_s: float
    ttft_s: float | None
    last_token_s: float | None

    @property
    def unaccounted_s(self) -> float:
        """Wall time that no part explains: messages on their way, and earlier attempts."""
        return self.wall_s - self.timing.total_s

    @property
    def record(self) -> RequestRecord:
        """What goodput counts."""
        return RequestRecord(self.outcome, self.ttft_s, self.last_token_s, self.num_tokens)
