"""Answers on their way to an HTTP client: whole, or as server-sent events."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.gateway.openai.calls import Calls, News
from cluster.gateway.openai.errors import HttpError

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
MANY_SCORES = 1000
STOPPING = HttpError(503, "draining", "the server stops before the answer is whole")
ABORT = "penstock.abort"
"""Where in a request's state the server leaves how to break its connection off."""

Headers: TypeAlias = Callable[[], Mapping[str, str]]
"""An answer's own headers, asked for when it begins to be written."""

as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""As `json.dumps`, which would make an encoder for every token."""


class EventWriter(Protocol):
    """Makes events of what comes; `data` is what stands behind `[DONE]`'s place, empty where a protocol has none."""

    done: bytes

    def events(self, news: News) -> Iterable[bytes]:
        """The events of a chunk, one for each token."""
        ...

    def finish(self) -> Iterable[bytes]:
        """What follows the last chunk of a request that finished."""
        ...

    def failed(self, error: HttpError) -> bytes:
        """The event of a request that did not."""
        ...


class WholeWriter(Protocol):
    """Puts an answer together. `num_scores`: of how many tokens its body will tell logprobs."""

    @property
    def num_scores(self) -> int:
        """How many tokens' logprobs the body tells."""
        ...

    def take(self, news: News) -> None:
        """A chunk of it."""
        ...

    def body(self) -> Mapping[str, object]:
        """All of it."""
        ...


def data_event(body: Mapping[str, object]) -> bytes:
    """An event with only data."""
    return b"data: " + as_json(body).encode() + b"\n\n"


class Answer(Response):
    """Serves calls to their end, and cancels them at once where the client leaves. Owns: the calls."""

    def __init__(self, calls: Calls, headers: Headers) -> None:
        super().__init__()
        self._calls = calls
        self._own_headers = headers
        self._is_broken = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the end of the answer or of the client, whichever is first."""
        writing = asyncio.ensure_future(self._write(scope, receive, send))
        leaving = asyncio.ensure_future(_left(receive))
        self._calls.when_broken(lambda: self._break(writing))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            writing.cancel()
            await self._cut_off(send)
            raise
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            self._calls.leave()
        if self._is_broken and (abort := scope["state"].get(ABORT)) is not None:
            abort()
            await asyncio.sleep(0)
        elif not writing.cancelled():
            writing.result()

    def _break(self, writing: "asyncio.Future[None]") -> None:
        self._is_broken = True
        writing.cancel()

    async def _cut_off(self, send: Send) -> None:
        """The server stops before the answer is whole."""

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    async def _refuse(self, error: HttpError, scope: Scope, receive: Receive, send: Send) -> None:
        await error.response(self._own_headers(), scope["path"])(scope, receive, send)


class WholeAnswer(Answer):
    """One JSON body, sent when all of it is there."""

    def __init__(self, calls: Calls, writer: WholeWriter, headers: Headers) -> None:
        super().__init__(calls, headers)
        self._writer = writer

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None
        while error is None and not self._calls.is_over:
            self._writer.take(await self._calls.next())
            error = self._calls.error
        if error is not None:
            return await self._refuse(error, scope, receive, send)
        body = await self._body()
        self._calls.begin_writing()
        await Response(body, media_type="application/json", headers=self._own_headers())(scope, receive, send)
        self._calls.end_writing()

    async def _body(self) -> str:
        """The body as text; one with many scores is made on a thread, for the most that are told take a second."""
        if self._writer.num_scores < MANY_SCORES:
            return self._made()
        return await asyncio.to_thread(self._made)

    def _made(self) -> str:
        return as_json(self._writer.body())


class EventAnswer(Answer):
    """Server-sent events. What fails before its first token is told by status, later by an event without `[DONE]`."""

    def __init__(self, calls: Calls, writer: EventWriter, headers: Headers, keep_alive_s: float) -> None:
        super().__init__(calls, headers)
        self._writer = writer
        self._keep_alive_s = keep_alive_s
        self._has_begun = False
        self._loop = asyncio.get_running_loop()
        self._said_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._said_at = self._loop.time()
        self._timer = self._loop.call_at(self._said_at + self._keep_alive_s, self._look)
        try:
            await self._write_all(scope, receive, send)
        finally:
            self._timer.cancel()

    async def _write_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None
        while error is None and not self._calls.is_over:
            news = await self._calls.next()
            error = self._calls.error
            if error is not None and not self._has_begun:
                return await self._refuse(error, scope, receive, send)
            if news.chunk.token_ids or news.chunk.finish is not None:
                await self._send(b"".join(self._writer.events(news)), send)
            elif error is None and news.chunk.ended is None:
                await self._send(KEEP_ALIVE, send)
        if error is None:
            await self._send(b"".join((*self._writer.finish(), self._writer.done)), send)
        else:
            await self._send(self._writer.failed(error), send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _cut_off(self, send: Send) -> None:
        if self._has_begun:
            await send({"type": "http.response.body", "body": self._writer.failed(STOPPING), "more_body": False})

    def _look(self) -> None:
        """Whether nothing was said for long. One timer for all of a stream: one for every token costs more than it."""
        now = self._loop.time()
        if now - self._said_at >= self._keep_alive_s:
            self._said_at = now
            self._calls.nudge()
        self._timer = self._loop.call_at(self._said_at + self._keep_alive_s, self._look)

    async def _send(self, data: bytes, send: Send) -> None:
        self._calls.begin_writing()
        if not self._has_begun:
            self._has_begun = True
            headers = [(k.encode(), v.encode()) for k, v in {**STREAM_HEADERS, **self._own_headers()}.items()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._calls.end_writing()
        self._said_at = self._loop.time()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
