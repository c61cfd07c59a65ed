"""One client's call: one request inside for each choice, one stream of chunks outside."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from cluster.gateway.access import Caller, Permit
from cluster.gateway.client_stream import Chunk, ClientStream
from cluster.gateway.ledger import CallEnd, RequestLedger
from cluster.gateway.streams import Delivered, Ended
from cluster.gateway.validation import Envelope
from core.errors import ErrorInfo
from core.ids import RequestId
from core.request import Request


class ClientCall:
    """All choices of one call between the gateway and its client.

    Owns: the choices' streams, and how the call ends. `writing_since` is set by the client's side while it writes;
    `on_broken` is called when the gateway gives it up. `notes` are codes of what was changed in the request.
    """

    def __init__(self, envelope: Envelope, streams: Sequence[ClientStream], permit: Permit) -> None:
        self.name = envelope.client_id or str(streams[0].request.id)
        self.notes = envelope.notes
        self.permit = permit
        self.told_at = streams[0].told_at
        self.deadline_s = streams[0].request.deadline_s
        self.error: ErrorInfo | None = None
        self.on_broken: Callable[[], object] | None = None
        self.writing_since: float | None = None
        self._streams = {stream.request.id: stream for stream in streams}
        self._turns = deque(streams)
        self._ledgers: dict[RequestId, RequestLedger] = {}
        self._wake = asyncio.Event()

    @property
    def request(self) -> Request:
        """That of choice 0: the prompt, the targets and what else the choices share."""
        return next(iter(self._streams.values())).request

    @property
    def requests(self) -> tuple[RequestId, ...]:
        """The requests inside, by choice."""
        return tuple(self._streams)

    @property
    def open_requests(self) -> tuple[RequestId, ...]:
        """Those that have not ended."""
        return tuple(name for name in self._streams if name not in self._ledgers)

    @property
    def ended(self) -> CallEnd | None:
        """How the call ended; None while a choice is open."""
        if self.open_requests:
            return None
        return CallEnd(self.error, tuple(self._ledgers[name] for name in self._streams))

    @property
    def pending_bytes(self) -> int:
        """What waits for the client."""
        return sum([stream.pending_bytes for stream in self._turns])

    @property
    def num_used_tokens(self) -> int:
        """What its caller's quota is charged for: the prompt of every choice, and the tokens that were delivered."""
        return sum(ledger.num_prompt_tokens + ledger.num_tokens for ledger in self._ledgers.values())

    def is_named(self, name: str, caller: Caller) -> bool:
        """Whether it is this caller's, and has this name, its own or the one minted here."""
        return self.permit.caller is caller and (name == self.name or RequestId(name) in self._streams)

    def put(self, delivered: Delivered, now: float) -> None:
        """Take tokens of a choice in and wake the client's side."""
        stream = self._streams[delivered.request]
        stream.put(delivered, now)
        if stream.has_news:
            self._wake.set()

    def is_stopped(self, request: RequestId) -> bool:
        """Whether a stop string has ended the text of a choice."""
        return bool(self._streams[request].text.stop)

    def end(self, ended: Ended, now: float) -> RequestLedger:
        """Take the end of a choice in; its ledger. The first error is the call's."""
        ledger = self._streams[ended.request].end(ended, now)
        self._ledgers[ended.request] = ledger
        self.error = self.error or ended.error
        self._wake.set()
        return ledger

    async def next_chunk(self) -> Chunk:
        """Wait for news of any choice, then take all of that choice's. Not to be called after a chunk with `ended`."""
        await self._wake.wait()
        chunk = self._next_stream().take()
        if len(self._turns) > 1 and any(stream.has_news for stream in self._turns):
            return chunk
        self._wake.clear()
        if len(self._ledgers) == len(self._streams):
            chunk.ended = self.ended
        return chunk

    def nudge(self) -> None:
        """Whoever waits for news gets an empty chunk where there are none."""
        self._wake.set()

    def _next_stream(self) -> ClientStream:
        """One with news, which then goes to the back: none waits for a busier one. Any, where nobody has news."""
        if len(self._turns) == 1:
            return self._turns[0]
        stream = next((stream for stream in self._turns if stream.has_news), self._turns[0])
        self._turns.remove(stream)
        self._turns.append(stream)
        return stream
