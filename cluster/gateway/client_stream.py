"""One client's end of a stream: tokens wait here until the client takes them, all that came since in one chunk."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cluster.gateway.detokenizer import Detokenizer
from cluster.gateway.ledger import RequestLedger
from cluster.gateway.streams import Delivered, Ended
from core.goodput import Outcome
from core.request import Request
from core.stats import Timing

PENDING_TOKEN_BYTES = 8
"""What a waiting token is charged: its id and its text on the wire."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Contiguous tokens with the text that became certain. `ended` and `ledger` come with the last chunk only."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    ended: Ended | None = None
    ledger: RequestLedger | None = None


@dataclass(slots=True)
class _Clock:
    """Moments of one request, of the gateway's monotonic clock."""

    received_at: float
    told_at: float
    first_token_at: float | None = None
    last_token_at: float | None = None

    def since_received(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self.received_at


@dataclass(slots=True)
class ClientStream:
    """Tokens between the gateway and one client.

    Owns: what was delivered and not yet taken, and the stream's detokenizer.
    `writing_since` is set by the client's side while it writes; `on_broken` is called when the gateway gives it up.
    """

    request: Request
    client_id: str
    received_at: float
    told_at: float
    detokenizer: Detokenizer
    on_broken: Callable[[], object] | None = None
    writing_since: float | None = None
    _clock: _Clock = field(init=False)
    _pending: list[int] = field(default_factory=list)
    _num_taken: int = 0
    _ended: Ended | None = None
    _ledger: RequestLedger | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._clock = _Clock(self.received_at, self.told_at)

    @property
    def name(self) -> str:
        """What the client calls the request, or what we do."""
        return self.client_id or self.request.id

    @property
    def ended(self) -> Ended | None:
        """How the stream ended; None while it is open."""
        return self._ended

    @property
    def pending_bytes(self) -> int:
        """What waits for the client."""
        return len(self._pending) * PENDING_TOKEN_BYTES

    def put(self, delivered: Delivered, now: float) -> None:
        """Take tokens in and wake the client's side."""
        clock = self._clock
        clock.last_token_at = now
        if clock.first_token_at is None:
            clock.first_token_at = now
        self._pending += delivered.token_ids
        self._wake.set()

    def end(self, ended: Ended, now: float) -> RequestLedger:
        """Take the end in; the ledger of the request."""
        clock, timing = self._clock, ended.timing or Timing()
        admitted_s = clock.told_at - clock.received_at
        self._ended = ended
        self._ledger = RequestLedger(
            id=ended.request,
            outcome=ended.outcome,
            code=ended.error.code if ended.error else "",
            num_prompt_tokens=self.request.prompt.num_tokens,
            num_tokens=ended.num_tokens,
            num_attempts=ended.num_attempts,
            timing=replace(timing, admit_s=timing.admit_s + admitted_s),
            wall_s=now - clock.received_at,
            ttft_s=clock.since_received(clock.first_token_at),
            last_token_s=clock.since_received(clock.last_token_at),
        )
        self._wake.set()
        return self._ledger

    async def next_chunk(self) -> Chunk:
        """Wait for news, then take all of it. Not to be called after a chunk with `ended`."""
        await self._wake.wait()
        self._wake.clear()
        token_ids, index = tuple(self._pending), self._num_taken
        self._pending.clear()
        self._num_taken += len(token_ids)
        text = self.detokenizer.push(token_ids)
        if self._ended is not None and self._ended.outcome is Outcome.FINISHED:
            text += self.detokenizer.finish()
        return Chunk(index, token_ids, text, self._ended, self._ledger)
