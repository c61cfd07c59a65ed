"""The calls of `penstock.v1.AdminService`: for operators, on a port of its own."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from cluster.api.v1 import admin_pb2 as pb
from cluster.gateway.admin_calls import AdminCalls
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys_grpc import authorization_of
from cluster.gateway.messages import decision_message
from cluster.gateway.operator import MAX_DECISIONS, Operator
from cluster.gateway.rpc_border import Context, RpcHandler, translated
from cluster.gateway.wire_parse import parse_message

ADMIN_SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["AdminService"].full_name
M = TypeVar("M", bound=Message)


class AdminService:
    """Serves an operator's calls. Who may call is asked before a message is read."""

    def __init__(self, gateway: Gateway, operator: Operator) -> None:
        self._gateway = gateway
        self._operator = operator
        self._calls = AdminCalls(gateway, operator)

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to route calls here."""
        methods: dict[str, RpcHandler] = {
            "GetCluster": self._plain(pb.AdminServiceGetClusterRequest, self._get_cluster),
            "SetMixes": self._plain(pb.SetMixesRequest, self._set_mixes),
            "LiftMixes": self._plain(pb.LiftMixesRequest, self._lift_mixes),
            "Drain": self._plain(pb.DrainRequest, self._calls.drain),
            "WatchDecisions": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler(ADMIN_SERVICE_NAME, methods)

    def _plain(self, kind: type[M], answer: Callable[[M], Awaitable[Message]]) -> RpcHandler:
        async def serve(data: bytes, context: Context) -> bytes:
            async with translated(context):
                return (await answer(self._read(data, kind, context))).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(serve)

    def _read(self, data: bytes, kind: type[M], context: Context) -> M:
        """Raises AccessDenied, RequestError."""
        self._gateway.access.admin(authorization_of(context.invocation_metadata()), time.time())
        return parse_message(data, kind, self._gateway.limits.max_message_bytes)

    async def _get_cluster(self, message: pb.AdminServiceGetClusterRequest) -> pb.AdminServiceGetClusterResponse:
        return self._calls.get_cluster()

    async def _set_mixes(self, message: pb.SetMixesRequest) -> pb.SetMixesResponse:
        return self._calls.set_mixes(message)

    async def _lift_mixes(self, message: pb.LiftMixesRequest) -> pb.LiftMixesResponse:
        return self._calls.lift_mixes(message)

    async def _watch(self, data: bytes, context: Context) -> None:
        async with translated(context):
            message = self._read(data, pb.WatchDecisionsRequest, context)
            if not 0 <= message.num_past <= MAX_DECISIONS:
                problem = f"must be 0 to {MAX_DECISIONS}, is {message.num_past}"
                raise FieldError("num_past", problem, "invalid_request")
            async for number, decision in self._operator.watch(message.num_past):
                told = decision_message(number, decision, time.monotonic())
                await context.write(pb.WatchDecisionsResponse(decision=told).SerializeToString())
