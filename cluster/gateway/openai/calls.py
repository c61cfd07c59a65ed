"""The gateway calls of one HTTP request: one for each of its prompts, their news in one stream."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.api.v1.inference_pb2 import GenerateRequest
from cluster.gateway.access import Caller
from cluster.gateway.choices import ClientCall
from cluster.gateway.client_stream import Chunk
from cluster.gateway.errors_wire import Variant
from cluster.gateway.gateway import Gateway
from cluster.gateway.ledger import CallEnd
from cluster.gateway.openai.errors import HttpError, ended_error


@dataclass(slots=True)
class News:
    """A chunk, and which of the request's calls it is of. Not frozen: one is made for every token."""

    call: int
    chunk: Chunk


class Calls:
    """All calls of one HTTP request, at least one. `leave` must follow.

    Owns: what waits for each call's next chunk.
    """

    def __init__(self, gateway: Gateway, calls: Sequence[ClientCall]) -> None:
        self.calls = tuple(calls)
        self._gateway = gateway
        self._waiting: dict[asyncio.Task[Chunk], int] = {}
        self._open = set(range(len(self.calls)))

    @classmethod
    async def submit(
        cls,
        gateway: Gateway,
        messages: Sequence[GenerateRequest],
        caller: Caller,
        received_at: float | None = None,
    ) -> "Calls":
        """All or none of them, as received at a moment of the monotonic clock, else now. Raises PenstockError."""
        calls: list[ClientCall] = []
        try:
            for message in messages:
                calls.append(await gateway.submit(message, None, caller, received_at))
        except BaseException:
            for call in calls:
                gateway.leave(call)
            raise
        return cls(gateway, calls)

    @property
    def model_name(self) -> str:
        """The served model's."""
        return self._gateway.model.name

    @property
    def is_over(self) -> bool:
        """Whether all calls have told their end."""
        return not self._open

    @property
    def ends(self) -> tuple[CallEnd, ...]:
        """How those calls ended that have."""
        return tuple(call.ended for call in self.calls if call.ended is not None)

    @property
    def error(self) -> HttpError | None:
        """What kept a call from finishing; None where none is known of."""
        for call in self.calls:
            if call.error is not None:
                has_tokens = any(end.num_tokens for end in self.ends)
                return ended_error(call.error, Variant.AFTER_TOKENS if has_tokens else Variant.USUAL)
        return None

    async def next(self) -> News:
        """The next chunk of any call. Not to be called when all is over."""
        if len(self.calls) == 1:
            return self._taken(0, await self.calls[0].next_chunk())
        for number in self._open.difference(self._waiting.values()):
            self._waiting[asyncio.ensure_future(self.calls[number].next_chunk())] = number
        done, _ = await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
        task = done.pop()
        return self._taken(self._waiting.pop(task), task.result())

    def _taken(self, number: int, chunk: Chunk) -> News:
        if chunk.ended is not None:
            self._open.discard(number)
        return News(number, chunk)

    def begin_writing(self) -> None:
        """From now on the client is being written to; the gateway breaks off what takes too long."""
        now = time.monotonic()
        for call in self.calls:
            call.writing_since = now

    def end_writing(self) -> None:
        """The client took it."""
        for call in self.calls:
            call.writing_since = None

    def nudge(self) -> None:
        """Whoever waits for news gets an empty chunk where there are none."""
        for number in self._open:
            self.calls[number].nudge()

    def when_broken(self, act: Callable[[], object] | None) -> None:
        """What to do where the gateway gives the client up."""
        for call in self.calls:
            call.on_broken = act

    def leave(self) -> None:
        """The client is served, or gone."""
        for task in self._waiting:
            task.cancel()
        self.when_broken(None)
        for call in self.calls:
            self._gateway.leave(call)
