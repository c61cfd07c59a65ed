"""Where one request's time went, seen from the gateway: parts + unaccounted = wall. And what a whole call used."""

from dataclasses import dataclass, field

from core.errors import ErrorInfo
from core.events import FinishReason
from core.goodput import Outcome, RequestRecord, meets
from core.ids import RequestId
from core.request import SLO
from core.stats import Timing

GAP_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
"""Classes of times between tokens: a gap belongs to the first bound that it does not exceed, else to one class more."""


PREFIXES = ("chatcmpl-", "cmpl-", "resp_")
"""What stands before a request's id in an answer over HTTP; a further choice's id is not told."""


def bare_id(name: str) -> str:
    """The id of a request, from that of an answer."""
    return next((name.removeprefix(it) for it in PREFIXES if name.startswith(it)), name)


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What a call's ledgers say of it beside the request: its class, the client's own id, and a trace that it is part
    of (`traceparent`). Empty: none."""

    slo_class: str = ""
    client_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class RequestLedger:
    """One ended request. Seconds since it was received; `timing` is its last attempt's, the gateway's admit added.

    `code` is the error's, empty where it finished. `ttft_s` and `last_token_s` are None where no token came,
    `num_cached_tokens` where no node told it. `slo` is what it is counted against, None where it has no targets.
    `received_at` is of the gateway's clock; `gaps` counts the times between tokens by `GAP_BOUNDS_S`.
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
    slo: SLO | None = None
    facts: CallFacts = field(default_factory=CallFacts)
    tenant: str = ""
    finish: FinishReason | None = None
    received_at: float = 0.0
    gaps: tuple[int, ...] = ()

    @property
    def slo_class(self) -> str:
        """The class that it was served as."""
        return self.facts.slo_class

    @property
    def met(self) -> bool | None:
        """Whether both targets were met; None without targets, and of a cancelled request, which goodput leaves out."""
        if self.slo is None or self.outcome is Outcome.CANCELLED:
            return None
        return meets(self.record, self.slo)

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
    def met(self) -> bool | None:
        """Whether every choice met its targets; None where there are none."""
        verdicts = [ledger.met for ledger in self.ledgers if ledger.met is not None]
        return all(verdicts) if verdicts else None

    @property
    def slowest(self) -> RequestLedger:
        """The ledger of the choice that took longest."""
        return max(self.ledgers, key=lambda ledger: ledger.wall_s)
