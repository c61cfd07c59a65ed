"""What operators ask of a cluster, checked and then done: the same for gRPC and HTTP."""

import time
from collections.abc import Mapping
from dataclasses import replace

from cluster.api.v1 import admin_pb2 as pb
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.gateway import Gateway
from cluster.gateway.messages import cluster_message
from cluster.gateway.operator import Operator, SlotView
from core.mix import Mix, mix_of

ROLES = ("prefill", "decode", "mixed", "closed")
MAX_STEP_TOKENS = 1 << 20


class AdminCalls:
    """One cluster's calls. Every method raises FieldError, and then nothing was changed."""

    def __init__(self, gateway: Gateway, operator: Operator) -> None:
        self._gateway = gateway
        self._operator = operator

    def get_cluster(self) -> pb.AdminServiceGetClusterResponse:
        """The cluster as it is now, with its slots."""
        return pb.AdminServiceGetClusterResponse(
            cluster=cluster_message(self._gateway, self._operator.shown(), time.monotonic()),
            slots=map(_slot, self._operator.slots()),
            controller=self._operator.controller(),
        )

    def set_mixes(self, message: pb.SetMixesRequest) -> pb.SetMixesResponse:
        """Mixes by hand, all at once."""
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

    def lift_mixes(self, message: pb.LiftMixesRequest) -> pb.LiftMixesResponse:
        """Slots go back to the controller; none named: all."""
        slots = self._slots()
        for index, name in enumerate(message.slots):
            _check_slot(name, slots, f"slots[{index}]")
        self._operator.lift_mixes(tuple(message.slots) or tuple(slots))
        return pb.LiftMixesResponse()

    async def drain(self, message: pb.DrainRequest) -> pb.DrainResponse:
        """A slot closes; the answer comes when its node is empty."""
        slots = self._slots()
        _check_slot(message.slot, slots, "slot")
        mixes = {name: slot.mix for name, slot in slots.items()}
        closed = replace(mixes[message.slot], accepts_prefill=False, accepts_decode=False)
        _check_served(mixes | {message.slot: closed}, "slot", message.force)
        return pb.DrainResponse(num_left=await self._operator.drain(message.slot, message.for_restart))

    async def flush(self) -> Mapping[str, int | None]:
        """Every node forgets the KV that nobody uses; the blocks that each has freed, None where it did not say."""
        return await self._operator.flush()

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
    budgets = {}
    for name in ("prefill_tokens_per_step", "max_decode_rows"):
        if asked.HasField(name) and not 1 <= getattr(asked, name) <= MAX_STEP_TOKENS:
            problem = f"must be 1 to {MAX_STEP_TOKENS}, is {getattr(asked, name)}"
            raise FieldError(f"{field}.{name}", problem, "invalid_request")
        budgets[name] = getattr(asked, name) or getattr(now, name)
        if budgets[name] < 1:
            raise FieldError(f"{field}.{name}", "must be named: this slot has no budget yet", "invalid_request")
    return mix_of(asked.role, budgets["prefill_tokens_per_step"], budgets["max_decode_rows"])


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
