"""The HTTP server of the OpenAI interface."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from cluster.batches.batches import Batches
from cluster.gateway.http_listening import AsgiServer, HttpPlace
from cluster.gateway.openai.app import create_app
from cluster.gateway.openai.batch_routes import batch_routes, batches_off_routes
from cluster.gateway.openai.door import Door
from cluster.gateway.openai.file_routes import file_routes
from cluster.gateway.openai.line_calls import LineCalls
from cluster.gateway.tls import TLSFiles


class HttpServer:
    """Serves one gateway over HTTP/1.1. Binds to loopback unless told otherwise; port 0 lets the kernel choose.

    Owns: its listener, and the batches where it keeps some. `routers` are mounted beside the interface's own routes,
    those of their `open_paths` need no key.
    """

    def __init__(
        self,
        door: Door,
        tls: TLSFiles | None = None,
        routers: Sequence[APIRouter] = (),
        open_paths: Sequence[str] = (),
    ) -> None:
        self._door = door
        self._routers = routers
        self._open_paths = open_paths
        kept = door.config.batches
        self._batches = None if kept is None else Batches(kept, LineCalls(door).ask)
        self._listener = AsgiServer(HttpPlace(door.config.host, door.config.port, "--host or --port", tls))

    @property
    def url(self) -> str:
        """Where clients call; empty before the start."""
        return self._listener.url

    @property
    def batches(self) -> Batches | None:
        """The batches that are kept; None where there are none."""
        return self._batches

    @property
    def first_curl(self) -> str:
        """A command to paste; with a key where one is asked for."""
        gateway = self._door.gateway
        key = "" if gateway.access.is_open else "-H 'authorization: Bearer KEY' "
        body = f'{{"prompt": "Once upon a time", "model": "{gateway.model.name}"}}'
        return f"curl {self.url}/v1/completions {key}-H 'content-type: application/json' -d '{body}'"

    async def start(self) -> int:
        """Listen, go on with batches; the port. Raises ConfigError where address or batch folder cannot be had."""
        batches = self._batches
        if batches is None:
            return await self._listener.start(self._app(batches_off_routes()))
        batches.open()
        try:
            port = await self._listener.start(
                self._app(file_routes(self._door, batches), batch_routes(self._door, batches))
            )
        except BaseException:
            await batches.stop()
            raise
        batches.start()
        return port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no new request, let open ones go on for `grace_s`, then break them off. Twice is fine.

        Requests of batches are broken off at once: the next start asks them again.
        """
        if self._listener.is_running:
            self._door.gateway.drain()
        if self._batches is not None:
            await self._batches.stop()
        await self._listener.stop(grace_s)

    def _app(self, *own: APIRouter) -> FastAPI:
        return create_app(self._door, (*own, *self._routers), self._open_paths)
