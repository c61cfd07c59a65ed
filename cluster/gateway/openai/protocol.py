"""uvicorn's HTTP/1.1 on h11, with bounds of its own: slow heads, and clients that must be broken off."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.gateway.openai.errors import HttpError
from cluster.gateway.openai.respond import ABORT

HEAD_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 4096
"""Idle ones hold a descriptor each; the gateway's limit of streams bounds the work of the others."""

MAX_HEAD_BYTES = 32 * 1024
"""What h11 keeps of an unfinished head: twice what is served, so that a head over it gets an answer of ours."""


class HttpProtocol(H11Protocol):
    """One connection. Owns: the timer of a head that does not come."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client; its first head must be whole before the timer fires."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self.app_state = self.app_state | {ABORT: transport.abort}
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """What h11 made of the bytes so far. A head that has begun must become whole in time, also a later one."""
        super().handle_events()
        is_waiting = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not is_waiting:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_slow_head)

    def send_400_response(self, msg: str) -> None:
        """Bytes that are no request; h11 has said why by its state only."""
        error = HttpError(400, "bad_request_line", "this is not a request of HTTP/1.1")
        body = error.response()
        headers = [*body.raw_headers, (b"connection", b"close")]
        try:
            for event in (
                h11.Response(status_code=400, headers=headers),
                h11.Data(data=bytes(body.body)),
                h11.EndOfMessage(),
            ):
                data: Any = self.conn.send(event)
                self.transport.write(data)
        except h11.LocalProtocolError:
            self.transport.abort()  # an answer is under way already
            return
        self.transport.close()

    def _on_slow_head(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
