"""Keys over gRPC: every method but the health service's is refused without one, before its message is read."""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias

import grpc
from grpc_health.v1 import health

from cluster.gateway.errors_wire import WireStatus, raised_status
from core.errors import AccessDenied

AUTHORIZATION = "authorization"
WITHOUT_KEY = f"/{health.SERVICE_NAME}/"
"""Probes of a cluster's own agents have no key; they learn whether the server lives, and nothing else."""

Admit: TypeAlias = Callable[[str | None, float], object]
"""`Access.caller` or `Access.admin`: raises AccessDenied."""

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
Details: TypeAlias = grpc.HandlerCallDetails


class KeyCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without a key that `admit` takes: known and unknown methods alike, so that nothing can be found."""

    def __init__(self, admit: Admit) -> None:
        self._admit = admit

    async def intercept_service(  # type: ignore[override]  # the stubs make the method generic over its messages
        self, continuation: Callable[[Details], Awaitable[RpcHandler]], handler_call_details: Details
    ) -> RpcHandler:
        """The method's own handler, or one that refuses."""
        if not str(handler_call_details.method).startswith(WITHOUT_KEY):
            try:
                self._admit(authorization_of(handler_call_details.invocation_metadata), time.time())
            except AccessDenied as error:
                return _refusal(raised_status(error))
        return await continuation(handler_call_details)


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The `authorization` of a call; None where there is not exactly one."""
    values: Sequence[str | bytes] = [value for key, value in metadata or () if key == AUTHORIZATION]
    return str(values[0]) if len(values) == 1 and isinstance(values[0], str) else None


def _refusal(status: WireStatus) -> RpcHandler:
    async def refuse(_requests: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        await context.abort(status.code, status.message, status.metadata)

    return grpc.stream_stream_rpc_method_handler(refuse)
