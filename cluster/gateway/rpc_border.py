"""Where a gRPC call meets our code: bytes in, errors out as a status, and an answer for every unknown method."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from cluster.gateway.errors_wire import WireStatus, echoed, raised_status, wire_status
from cluster.gateway.trace_context import TRACEPARENT_KEY, note_traceparent
from core.errors import ErrorInfo, PenstockError

MAX_ABORT_S = 1.0

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
Context = grpc.aio.ServicerContext[bytes, bytes]
_log = logging.getLogger(__name__)


class UnknownMethods(grpc.GenericRpcHandler):
    """Answers what no other handler knows; to be added last."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> RpcHandler:
        """A handler that refuses this method by name."""
        error = ErrorInfo("not_found", f"there is no method {echoed(str(handler_call_details.method))}")

        async def refuse(_requests: object, context: Context) -> None:
            await abort(context, wire_status(error))

        return grpc.stream_stream_rpc_method_handler(refuse)


@contextlib.asynccontextmanager
async def translated(context: Context) -> AsyncIterator[None]:
    """The call's trace is noted, and what is raised inside becomes a status, once.

    Our own mistakes are told by a number that stands in the log.
    """
    metadata = context.invocation_metadata() or ()
    note_traceparent(next((str(value) for key, value in metadata if key == TRACEPARENT_KEY), None))
    try:
        yield
    except PenstockError as error:
        await abort(context, raised_status(error))
    except grpc.aio.BaseError:
        raise
    except Exception:
        number = secrets.token_hex(4)
        _log.exception("a call failed by our own mistake, number %s", number)
        await abort(context, wire_status(ErrorInfo("internal", f"internal error, number {number} in the log")))


async def abort(context: Context, status: WireStatus) -> None:
    """End the call. A client that does not read gets no more than a moment to take the status."""
    try:
        async with asyncio.timeout(MAX_ABORT_S):
            await context.abort(status.code, status.message, status.metadata)
    except TimeoutError as error:
        raise asyncio.CancelledError from error
