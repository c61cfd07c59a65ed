"""The two calls of `penstock.v1.InferenceService`, and an answer for every method that does not exist."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.choices import ClientCall
from cluster.gateway.client_stream import Chunk
from cluster.gateway.cluster_state import StateProvider
from cluster.gateway.errors_wire import Variant, WireStatus, echoed, raised_status, wire_status
from cluster.gateway.gateway import Gateway
from cluster.gateway.ledger import CallEnd
from cluster.gateway.messages import cluster_message, response_message
from cluster.gateway.wire_parse import parse_generate
from core.errors import ErrorInfo, PenstockError

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
MAX_ABORT_S = 1.0
MANY_SCORES = 1000
"""From here on a prompt's logprobs are made into a message on a thread: the most that are told take 0.15 s."""

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
Context = grpc.aio.ServicerContext[bytes, bytes]
_log = logging.getLogger(__name__)


class InferenceService:
    """Serves the gateway to gRPC. Messages arrive as bytes: what cannot be parsed gets an answer of ours, too."""

    def __init__(self, gateway: Gateway, state: StateProvider) -> None:
        self._gateway = gateway
        self._state = state

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to route calls here."""
        methods: dict[str, RpcHandler] = {
            "Generate": grpc.unary_stream_rpc_method_handler(self._generate),
            "GetCluster": grpc.unary_unary_rpc_method_handler(self._get_cluster),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def _generate(self, data: bytes, context: Context) -> None:
        async with _translated(context):
            message = parse_generate(data, self._gateway.limits.max_message_bytes)
            call = await self._gateway.submit(message, context.time_remaining())
            try:
                await self._serve(call, context)
            finally:
                self._gateway.leave(call)

    async def _get_cluster(self, data: bytes, context: Context) -> bytes:
        async with _translated(context):
            return cluster_message(self._gateway, self._state()).SerializeToString()

    async def _serve(self, call: ClientCall, context: Context) -> None:
        """Write until the end. The gateway breaks it off where the client does not read."""
        task = asyncio.current_task()
        assert task is not None
        call.on_broken = task.cancel
        try:
            ended = await self._write_all(call, context)
        except asyncio.CancelledError:
            if call.ended is None or call.ended.error is None or call.ended.error.code != "slow_reader":
                raise
            call.writing_since, call.on_broken = None, None
            ended = call.ended
        if ended.error is not None:
            await _abort(context, ended_status(ended, ended.error))

    async def _write_all(self, call: ClientCall, context: Context) -> CallEnd:
        while True:
            chunk = await call.next_chunk()
            if chunk.token_ids or chunk.finish is not None:
                data = await _response(call.name, chunk)
                call.writing_since = time.monotonic()
                await context.write(data)
                call.writing_since = None
            if chunk.ended is not None:
                return chunk.ended


class UnknownMethods(grpc.GenericRpcHandler):
    """Answers what no other handler knows; to be added last."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> RpcHandler:
        """A handler that refuses this method by name."""
        error = ErrorInfo("not_found", f"there is no method {echoed(str(handler_call_details.method))}")

        async def refuse(_requests: object, context: Context) -> None:
            await _abort(context, wire_status(error))

        return grpc.stream_stream_rpc_method_handler(refuse)


def ended_status(ended: CallEnd, error: ErrorInfo) -> WireStatus:
    """The status of a call that did not finish."""
    return wire_status(error, variant=Variant.AFTER_TOKENS if ended.num_tokens else Variant.USUAL)


async def _response(name: str, chunk: Chunk) -> bytes:
    if len(chunk.prompt_logprobs) < MANY_SCORES:
        return response_message(name, chunk).SerializeToString()
    return await asyncio.to_thread(lambda: response_message(name, chunk).SerializeToString())


@contextlib.asynccontextmanager
async def _translated(context: Context) -> AsyncIterator[None]:
    """What is raised inside becomes a status, once. Our own mistakes are told by a number that stands in the log."""
    try:
        yield
    except PenstockError as error:
        await _abort(context, raised_status(error))
    except grpc.aio.BaseError:
        raise
    except Exception:
        number = secrets.token_hex(4)
        _log.exception("a call failed by our own mistake, number %s", number)
        await _abort(context, wire_status(ErrorInfo("internal", f"internal error, number {number} in the log")))


async def _abort(context: Context, status: WireStatus) -> None:
    """End the call. A client that does not read gets no more than a moment to take the status."""
    try:
        async with asyncio.timeout(MAX_ABORT_S):
            await context.abort(status.code, status.message, status.metadata)
    except TimeoutError as error:
        raise asyncio.CancelledError from error
