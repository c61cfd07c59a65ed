"""The requests that the scheduler has not seen the end of, and the queue of those that wait for a route."""

from bisect import insort
from dataclasses import dataclass, field, replace

from core.errors import ErrorInfo
from core.ids import AttemptId, GatewayId, NodeId, attempt_id
from core.lifecycle import RequestState
from core.request import Request, num_packed
from scheduler.moves import Move
from scheduler.policies.policy import Route

MAX_DOUBLINGS = 4
"""Of the pause between tries."""


@dataclass(slots=True)
class Flight:
    """One request. `log` is what the gateway has delivered; `attempt` the current try, None while it waits.

    `route` is the last one. `num_tries` counts failed tries, `num_losses` those that ended with a node,
    `num_preemptions` and `num_refusals` neither.
    `unheld_since`: a node called its attempt complete, or all have reported it; the gateway has not ended it yet.
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
        spread = 0.8 + 0.4 * (sum(self.request.id.encode()) % 64) / 64
        return float(backoff_s * 2 ** min(num_failed - 1, MAX_DOUBLINGS) * spread)

    def mint_attempt(self) -> AttemptId:
        """The next try's name."""
        self.attempt = attempt_id(self.request.id, self.next_number)
        self.next_number += 1
        self.move, self.moves_at, self.shunned = None, 0.0, frozenset()
        return self.attempt

    def follow(self, node: NodeId) -> None:
        """Its row decodes there now."""
        self.route = replace(self.route, decode=node) if self.route else None


@dataclass(slots=True)
class WaitingQueue:
    """Requests that wait for a route: higher priority first, then older first.

    Owns: the order. A request is in it exactly while its state is WAITING.
    """

    num_tokens: int = 0
    _order: list[tuple[int, float, int, Flight]] = field(default_factory=list)
    _num_added: int = 0

    def __len__(self) -> int:
        return len(self._order)

    def add(self, flight: Flight) -> None:
        """Queue it by priority and age; one that resumes takes the place its age gives it."""
        self._num_added += 1
        insort(self._order, (-flight.request.priority, flight.arrived_at, self._num_added, flight), key=lambda e: e[:3])
        self.num_tokens += flight.num_tokens

    def remove(self, flight: Flight) -> None:
        """Take it out."""
        index = next(i for i, entry in enumerate(self._order) if entry[3] is flight)
        del self._order[index]
        self.num_tokens -= flight.num_tokens

    def flights(self) -> list[Flight]:
        """All, in order."""
        return [entry[3] for entry in self._order]
