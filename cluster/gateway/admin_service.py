"""The calls of `penstock.v1.AdminService`: for operators, on a port of its own."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from cluster.api.v1 import admin_pb2 as pb
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys_grpc import authorization_of
from cluster.gateway.messages import cluster_message, decision_message
from cluster.gateway.operator import MAX_DECISIONS, Operator, SlotView
from cluster.gateway.rpc_border import Context, RpcHandler, translated
from cluster.gateway.wire_parse import parse_message
from core.errors import InvalidRequest
from core.mix import Mix, mix_of

ADMIN_SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["AdminService"].full_name
ROLES = ("prefill", "decode", "mixed", "closed")
MAX_STEP_TOKENS = 1 << 20
M = TypeVar("M", bound=Message)


class AdminService:
    """Serves an operator's calls. Who may call is asked before a message is read."""

    def __init__(self, gateway: Gateway, operator: Operator) -> None:
        self._gateway = gateway
        self._operator = operator

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to route calls here."""
        methods: dict[str, RpcHandler] = {
            "GetCluster": self._plain(pb.AdminServiceGetClusterRequest, self._get_cluster),
            "SetMixes": self._plain(pb.SetMixesRequest, self._set_mixes),
            "LiftMixes": self._plain(pb.LiftMixesRequest, self._lift_mixes),
            "Drain": self._plain(pb.DrainRequest, self._drain),
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
        return pb.AdminServiceGetClusterResponse(
            cluster=cluster_message(self._gateway, self._operator.shown(), time.monotonic()),
            slots=map(_slot, self._operator.slots()),
            controller=self._operator.controller(),
        )

    async def _set_mixes(self, message: pb.SetMixesRequest) -> pb.SetMixesResponse:
        slots = self._slots()
        if not message.mixes:
            raise FieldError("mixes", "must not be empty", "invalid_request")
        mixes: dict[str, Mix] = {}
        for index, asked in enumerate(message.mixes):
            field = f"mixes[{index}]"
            _check_slot(asked.slot, slots, f"{field}.slot")
            if asked.slot in mixes:
                raise FieldError(f"{field}.slot", f"{echoed(asked.slot)} stands there twice", "invalid_request")
            mixes[asked.slot] = _mix(asked, slots[asked.slot].mix, field)
        after = {name: mixes.get(name, slot.mix) for name, slot in slots.items()}
        _check_served(after, "mixes", message.force)
        self._operator.set_mixes(mixes)
        return pb.SetMixesResponse()

    async def _lift_mixes(self, message: pb.LiftMixesRequest) -> pb.LiftMixesResponse:
        slots = self._slots()
        for index, name in enumerate(message.slots):
            _check_slot(name, slots, f"slots[{index}]")
        self._operator.lift_mixes(tuple(message.slots) or tuple(slots))
        return pb.LiftMixesResponse()

    async def _drain(self, message: pb.DrainRequest) -> pb.DrainResponse:
        slots = self._slots()
        _check_slot(message.slot, slots, "slot")
        mixes = {name: slot.mix for name, slot in slots.items()}
        closed = replace(mixes[message.slot], accepts_prefill=False, accepts_decode=False)
        _check_served(mixes | {message.slot: closed}, "slot", message.force)
        return pb.DrainResponse(num_left=await self._operator.drain(message.slot, message.for_restart))

    async def _watch(self, data: bytes, context: Context) -> None:
        async with translated(context):
            message = self._read(data, pb.WatchDecisionsRequest, context)
            if not 0 <= message.num_past <= MAX_DECISIONS:
                problem = f"must be 0 to {MAX_DECISIONS}, is {message.num_past}"
                raise FieldError("num_past", problem, "invalid_request")
            async for number, decision in self._operator.watch(message.num_past):
                told = decision_message(number, decision, time.monotonic())
                await context.write(pb.WatchDecisionsResponse(decision=told).SerializeToString())

    def _slots(self) -> dict[str, SlotView]:
        return {slot.name: slot for slot in self._operator.slots()}


def _check_slot(name: str, slots: dict[str, SlotView], field: str) -> None:
    if name not in slots:
        raise FieldError(field, f"{echoed(name)} is not known; there are {', '.join(slots)}", "unknown_node")


def _check_served(mixes: dict[str, Mix], field: str, force: bool) -> None:
    """No phase may be left to nobody by mistake: the others would be widened to both."""
    for ability, word in (("accepts_prefill", "prefill"), ("accepts_decode", "decode")):
        if not force and not any(getattr(mix, ability) for mix in mixes.values()):
            problem = f"afterwards no node would {word}; force it if the others are to do both phases"
            raise FieldError(field, problem, "phase_uncovered")


def _mix(asked: pb.SlotMix, now: Mix, field: str) -> Mix:
    if asked.role not in ROLES:
        problem = f"must be one of {', '.join(ROLES)}, is {echoed(asked.role)}"
        raise FieldError(f"{field}.role", problem, "invalid_request")
    for name in ("prefill_tokens_per_step", "max_decode_rows"):
        if asked.HasField(name) and not 1 <= getattr(asked, name) <= MAX_STEP_TOKENS:
            problem = f"must be 1 to {MAX_STEP_TOKENS}, is {getattr(asked, name)}"
            raise FieldError(f"{field}.{name}", problem, "invalid_request")
    tokens = asked.prefill_tokens_per_step or now.prefill_tokens_per_step
    rows = asked.max_decode_rows or now.max_decode_rows
    if tokens < 1 or rows < 1:
        raise InvalidRequest(f"{field}: this slot has no budget yet; name prefill_tokens_per_step and max_decode_rows")
    return mix_of(asked.role, tokens, rows)


def _slot(slot: SlotView) -> pb.Slot:
    return pb.Slot(
        name=slot.name,
        state=slot.state,
        node=slot.node or "",
        num_deaths=slot.num_deaths,
        overridden=slot.is_overridden,
        drained=slot.is_drained,
        host=slot.host,
    )
