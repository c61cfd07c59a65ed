"""Where one request's time went, seen from the gateway: parts + unaccounted = wall. And what a whole call used."""

from dataclasses import dataclass

from core.errors import ErrorInfo
from core.goodput import Outcome, RequestRecord
from core.ids import RequestId
from core.stats import Timing


@dataclass(frozen=True, slots=True)
class RequestLedger:
    """One ended request. Seconds since it was received; `timing` is its last attempt's, the gateway's admit added.

    `code` is the error's, empty where it finished. `ttft_s` and `last_token_s` are None where no token came,
    `num_cached_tokens` where no node told it.
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
    num_cached_tokens: int | None

    @property
    def unaccounted_s(self) -> float:
        """Wall time that no part explains: messages on their way, and earlier attempts."""
        return self.wall_s - self.timing.total_s

    @property
    def record(self) -> RequestRecord:
        """What goodput counts."""
        return RequestRecord(self.outcome, self.ttft_s, self.last_token_s, self.num_tokens)


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of a call, once all its choices have ended; `error` is None only where all of them finished.

    `ledgers` are the choices' own, in their order.
    """

    error: ErrorInfo | None
    ledgers: tuple[RequestLedger, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, counted once."""
        return self.ledgers[0].num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of all choices that were delivered."""
        return sum(ledger.num_tokens for ledger in self.ledgers)

    @property
    def num_cached_tokens(self) -> int | None:
        """Those of choice 0: the others find what it has just computed, as a single request would not."""
        return self.ledgers[0].num_cached_tokens

    @property
    def slowest(self) -> RequestLedger:
        """The ledger of the choice that took longest."""
        return max(self.ledgers, key=lambda ledger: ledger.wall_s)
