"""One ASGI application behind uvicorn, in the loop that runs: started and stopped as the gRPC servers are."""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from cluster.gateway.openai.protocol import MAX_HEAD_BYTES, HttpProtocol
from cluster.gateway.tls import TLSFiles
from core.errors import ConfigError

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""An idle connection is kept for longer than clients and balancers keep theirs: they close it, and lose no request."""

START_POLL_S = 0.005
DATE_S = 1.0
LINGER_S = 1.0


@dataclass(frozen=True, slots=True)
class HttpPlace:
    """Where to listen; port 0 lets the kernel choose. `flags` are what an operator would change."""

    host: str
    port: int
    flags: str
    tls: TLSFiles | None = None


class _Uvicorn(uvicorn.Server):
    """A server that leaves signals to whoever runs the loop, and sleeps while there is nothing to do."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()
        self.grace_s = 0.0

    async def main_loop(self) -> None:
        """Until it is asked to stop; the date that every answer carries is renewed each second."""
        while not self.stopping.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_S):
                    await self.stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what is idle, wait for open requests, cut off those that take too long, let the last bytes go out."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        connections, tasks = self.server_state.connections, self.server_state.tasks
        for connection in tuple(connections):
            connection.shutdown()
        await _ended(tuple(tasks), self.grace_s)
        for task in tuple(tasks):
            task.cancel()
        await _ended(tuple(tasks), None)
        until = time.monotonic() + LINGER_S
        while connections and time.monotonic() < until:
            await asyncio.sleep(START_POLL_S)
        for connection in tuple(connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AsgiServer:
    """Serves one application over HTTP/1.1. Owns: the listening socket, and the task that serves."""

    def __init__(self, place: HttpPlace) -> None:
        self.url = ""
        self._place = place
        self._server: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    async def start(self, app: ASGIApp) -> int:
        """Listen; the port. Raises ConfigError where the address cannot be had."""
        place = self._place
        listener = _listen(place)
        port = int(listener.getsockname()[1])
        server = _Uvicorn(_uvicorn_config(app, place.tls))
        self._task = asyncio.create_task(server.serve([listener]), name="http")
        while not server.started and not self._task.done():
            await asyncio.sleep(START_POLL_S)
        if self._task.done():
            listener.close()
            await self._task
        self._server = server
        host = f"[{place.host}]" if ":" in place.host else place.host
        self.url = f"{'http' if place.tls is None else 'https'}://{host}:{port}"
        return port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no new request, let open ones go on for `grace_s`, then break them off. Twice is fine."""
        if self._server is None or self._task is None:
            return
        server, task, self._server, self._task = self._server, self._task, None, None
        server.grace_s = grace_s
        server.stopping.set()
        await task


def _uvicorn_config(app: ASGIApp, tls: TLSFiles | None) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the front logs our mistakes, once
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ssl_certfile=None if tls is None else tls.cert,
        ssl_keyfile=None if tls is None else tls.key,
        ssl_ca_certs=None if tls is None or tls.client_ca is None else str(tls.client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.client_ca is None else ssl.CERT_REQUIRED,
    )


async def _ended(tasks: tuple[asyncio.Task[None], ...], timeout_s: float | None) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)


def _listen(at: HttpPlace) -> socket.socket:
    """A listening socket, or the system's own words for why not."""
    try:
        family, kind, number, _, place = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        problem = f"the HTTP server cannot listen on {at.host}:{at.port}: {error.strerror or error}"
        raise ConfigError([f"{problem}; choose another {at.flags} (0: any free one)"]) from error
    listener.setblocking(False)
    return listener
