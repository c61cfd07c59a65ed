"""The requests that the scheduler has not seen the end of."""

from dataclasses import dataclass, replace

from core.errors import ErrorInfo
from core.ids import AttemptId, GatewayId, NodeId, RequestId, attempt_id
from core.lifecycle import RequestState
from core.request import Request, num_packed
from scheduler.demand import Route
from scheduler.moves import Move
from scheduler.predictor import Expected

MAX_DOUBLINGS = 4
"""Of the pause between tries."""


@dataclass(slots=True)
class Flight:
    """One request. `log` is what the gateway has delivered; `attempt` the current try, None while it waits.

    `route` is the last one. `num_tries` counts failed tries, `num_losses` those that ended with a node,
    `num_preemptions` and `num_refusals` neither.
    `unheld_since`: a node called its attempt complete, or all have reported it; the gateway has not ended it yet.
    `is_late`: it has waited beyond its TTFT. `ttft_s` is what was predicted at the door, `expected` of its attempt.
    `move`: where its row is going; not before `moves_at` again, and not to nodes in `shunned`, which did not take it.
    """

    request: Request
    gateway: GatewayId
    arrived_at: float
    state: RequestState = RequestState.WAITING
    log: bytes = b""
    attempt: AttemptId | None = None
    next_number: int = 0
    num_tries: int = 0
    num_losses: int = 0
    num_preemptions: int = 0
    num_refusals: int = 0
    num_skipped: int = 0
    waiting_since: float = 0.0
    not_before: float = 0.0
    resuming_since: float = 0.0
    unheld_since: float | None = None
    route: Route | None = None
    avoid: frozenset[NodeId] = frozenset()
    error: ErrorInfo | None = None
    move: Move | None = None
    moves_at: float = 0.0
    shunned: frozenset[NodeId] = frozenset()
    is_late: bool = False
    ttft_s: float | None = None
    expected: Expected | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV an attempt has to compute: prompt and log."""
        return self.request.prompt.num_tokens + num_packed(self.log)

    @property
    def num_left(self) -> int:
        """Tokens that may still be sampled."""
        return self.request.sampling.max_tokens - num_packed(self.log)

    @property
    def shared_prompt(self) -> bytes:
        """What names the whole prompt where an equal one spares computing it; else empty (see `Booking.prompt`).

        With a log there is more to compute than the prompt, and scores of its tokens cannot be found.
        """
        if self.log or self.request.sampling.prompt_logprobs is not None:
            return b""
        return self.request.prompt.tail_key

    @property
    def pair(self) -> frozenset[NodeId]:
        """Both nodes of the last route."""
        return frozenset((self.route.prefill, self.route.decode)) if self.route else frozenset()

    def pause_s(self, backoff_s: float) -> float:
        """Before the next try: grows with failed tries and refusals, spread by 20 % either way by the request's id."""
        num_failed = self.num_tries + self.num_refusals
        if num_failed == 0:
            return 0.0
        return float(backoff_s * 2 ** min(num_failed - 1, MAX_DOUBLINGS) * spread_of(self.request.id))

    def mint_attempt(self) -> AttemptId:
        """The next try's name."""
        self.attempt = attempt_id(self.request.id, self.next_number)
        self.next_number += 1
        self.move, self.moves_at, self.shunned = None, 0.0, frozenset()
        return self.attempt

    def follow(self, node: NodeId) -> None:
        """Its row decodes there now."""
        self.route = replace(self.route, decode=node) if self.route else None


def spread_of(request: RequestId) -> float:
    """A factor from 0.8 to 1.2, by the request's id: what many wait for should not end for all at once."""
    return 0.8 + 0.4 * (sum(request.encode()) % 64) / 64
