"""The operators' HTTP server: a port of its own beside their gRPC port, loopback unless there is an operator's key."""

from fastapi import FastAPI

from cluster.gateway.access import Caller
from cluster.gateway.admin_bodies import DrainBody, FlushBody, MixBody, RatioBody
from cluster.gateway.admin_calls import AdminCalls
from cluster.gateway.admin_routes import admin_routes
from cluster.gateway.gateway import Gateway
from cluster.gateway.http_listening import AsgiServer, HttpPlace
from cluster.gateway.listening import Endpoint
from cluster.gateway.openai.described import add_description, fronted
from cluster.gateway.openai.hosts import HostCheck, is_loopback
from cluster.gateway.openai.openapi import Described
from cluster.gateway.operator import Operator

OPERATORS = Described(
    "Penstock for operators",
    """What may be changed of a running cluster. Bodies are JSON objects; errors are those of the public interface.

Nodes are named as `penstock status` names them.""",
)
BODIES = (RatioBody, MixBody, DrainBody, FlushBody)


class AdminHttp:
    """Serves one operator over HTTP/1.1. Owns: its listener. It stays while requests drain, as the gRPC port does."""

    def __init__(self, gateway: Gateway, operator: Operator, at: Endpoint) -> None:
        self._gateway = gateway
        self._operator = operator
        self._at = at
        self._listener = AsgiServer(HttpPlace(at.host, at.port, at.flags, at.tls))

    @property
    def url(self) -> str:
        """Where operators call; empty before the start."""
        return self._listener.url

    async def start(self) -> int:
        """Listen; the port. Raises ConfigError where the address cannot be had."""
        return await self._listener.start(self._app())

    async def stop(self) -> None:
        """Break off what is open. Twice is fine."""
        await self._listener.stop()

    def _app(self) -> FastAPI:
        has_key = self._gateway.access.settings.has_admin
        hosts = HostCheck(is_local=not has_key and is_loopback(self._at.host))
        calls = AdminCalls(self._gateway, self._operator)
        routes = admin_routes(calls, self._gateway.limits.max_message_bytes)
        app = fronted([routes], self._caller, hosts, open_paths=())
        add_description(app, OPERATORS, BODIES, _first_curl)
        return app

    def _caller(self, authorization: str | None, wall_s: float) -> Caller:
        return self._gateway.access.admin(authorization, wall_s)


def _first_curl(base_url: str) -> str:
    return f"curl {base_url}/cluster/ratio -H 'content-type: application/json' -d '{{\"ratio\": \"2:1\"}}'"
