"""/metrics on a port of its own, for scrapers that have no key: whoever reaches the port may read."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.gateway.http_listening import AsgiServer, HttpPlace
from cluster.metrics.exposition import Exposition
from cluster.metrics.routes import PATH, text_response


class MetricsPort:
    """Serves one exposition. Owns: its listener."""

    def __init__(self, exposition: Exposition, host: str, port: int) -> None:
        self._exposition = exposition
        self._listener = AsgiServer(HttpPlace(host, port, "--admin-host or --metrics-port"))

    @property
    def url(self) -> str:
        """Where scrapers call; empty before the start."""
        return f"{self._listener.url}{PATH}" if self._listener.url else ""

    async def start(self) -> int:
        """Listen; the port. Raises ConfigError where the address cannot be had."""
        return await self._listener.start(Starlette(routes=[Route(PATH, self._metrics)]))

    async def stop(self) -> None:
        """Break off what is open. Twice is fine."""
        await self._listener.stop()

    async def _metrics(self, request: Request) -> Response:
        return await text_response(self._exposition, request)
