"""What operators change over HTTP: the same calls as gRPC's, by their own names."""

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.api.v1 import admin_pb2 as pb
from cluster.gateway.admin_bodies import DRAIN_S, MAX_DRAIN_S, DrainBody, FlushBody, MixBody, RatioBody
from cluster.gateway.admin_calls import ROLES, AdminCalls
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.door import name_fields
from cluster.gateway.openai.errors import FieldNames
from cluster.gateway.openai.fields import MAX_INT32, Model, fit, read_model
from cluster.gateway.openai.json_body import read_fields
from cluster.gateway.openai.openapi import ANSWERS, Json, answer_of_error, body_of
from cluster.gateway.ratio import roles_for, roles_now, slot_of
from core.errors import ConfigError, DeadlineExceeded

AUTO = "auto"
NODE = {"mixes[0].slot": "node", "slots[0]": "node", "slot": "node"}
RATIO_NAMES = FieldNames({"mixes": "ratio"})
MIX_NAMES = FieldNames({**NODE, "mixes": "role", **{f"mixes[0].{name}": name for name in MixBody.model_fields}})
DRAIN_NAMES = FieldNames(NODE)

CHANGED: dict[int | str, Json] = {
    **{status: ANSWERS[status] for status in (400, 401, 403, 408, 413, 415, 431, 500, 504)},
    200: {"description": "It is done.", "content": {"application/json": {"schema": {"type": "object"}}}},
    404: answer_of_error("No such node."),
    409: answer_of_error("Afterwards nobody would prefill, or nobody decode."),
}


def admin_routes(calls: AdminCalls, max_body_bytes: int) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["operators"], responses=CHANGED)

    async def read(request: Request, kind: type[Model], names: FieldNames) -> Model:
        name_fields(request, names)
        return read_model(kind, await read_fields(request, max_body_bytes))

    @router.post("/cluster/ratio", summary="Set the ratio by hand, or lift it", openapi_extra=body_of(RatioBody))
    async def ratio(request: Request) -> Response:
        """How many nodes prefill and decode: as few as can be change. `1:1` of four nodes is two and two."""
        asked = ratio_of(await read(request, RatioBody, RATIO_NAMES))
        shown = calls.get_cluster()
        if asked == AUTO:
            calls.lift_mixes(pb.LiftMixesRequest())
            return changes(dict.fromkeys((slot.name for slot in shown.slots), AUTO), shown)
        try:
            roles = roles_for(asked, roles_now(shown))
        except ConfigError as error:
            raise FieldError("ratio", "; ".join(error.problems), "invalid_request") from error
        calls.set_mixes(pb.SetMixesRequest(mixes=[pb.SlotMix(slot=name, role=role) for name, role in roles.items()]))
        return changes(roles, shown)

    @router.post("/nodes/{node}/mix", summary="Set by hand what a node does", openapi_extra=body_of(MixBody))
    async def mix(node: str, request: Request) -> Response:
        """`auto` gives it back to the controller, and opens a node that was drained, as every other role does."""
        asked, slot = await read(request, MixBody, MIX_NAMES), slot_of(node)
        shown = calls.get_cluster()
        if asked.role == AUTO:
            check_auto(asked)
            calls.lift_mixes(pb.LiftMixesRequest(slots=[slot]))
        else:
            calls.set_mixes(pb.SetMixesRequest(mixes=[slot_mix(slot, asked)], force=bool(asked.force)))
        return changes({slot: asked.role}, shown)

    @router.post("/nodes/{node}/drain", summary="Empty a node", openapi_extra=body_of(DrainBody))
    async def drain(node: str, request: Request) -> Response:
        """Answers when it is empty: rows go on elsewhere, what cannot move finishes there. `num_left` attempts were
        left where its time was over or it was lost. It stays closed until `mix` gives it a role, or `auto`."""
        asked, slot = await read(request, DrainBody, DRAIN_NAMES), slot_of(node)
        timeout_s = DRAIN_S if asked.timeout_s is None else asked.timeout_s
        if not 0 < timeout_s <= MAX_DRAIN_S:
            raise FieldError("timeout_s", f"must be above 0 and at most {MAX_DRAIN_S:g}", "invalid_request")
        message = pb.DrainRequest(slot=slot, force=bool(asked.force), for_restart=bool(asked.for_restart))
        try:
            async with asyncio.timeout(timeout_s):
                done = await calls.drain(message)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{slot} is closed, and was not empty after {timeout_s:g} s") from error
        return JSONResponse({"node": slot, "num_left": done.num_left})

    @router.post("/flush_cache", summary="Forget cached prefixes", openapi_extra=body_of(FlushBody))
    async def flush_cache(request: Request) -> Response:
        """Every node frees the KV blocks that are kept for later prompts only; what a request uses stays. `num_blocks`
        were freed; null for a node that did not answer."""
        await read(request, FlushBody, FieldNames())
        freed = await calls.flush()
        nodes = [{"node": slot, "num_blocks": number} for slot, number in freed.items()]
        return JSONResponse({"nodes": nodes, "num_blocks": sum(number or 0 for number in freed.values())})

    return router


def ratio_of(asked: RatioBody) -> str:
    """`P:D` or `auto`. Raises FieldError."""
    counts = (asked.prefill, asked.decode)
    if asked.ratio is None and None not in counts:
        return f"{asked.prefill}:{asked.decode}"
    if asked.ratio is None or counts != (None, None):
        raise FieldError("ratio", "give it, or prefill and decode, and not both", "invalid_request")
    return asked.ratio


def check_auto(asked: MixBody) -> None:
    """Raises FieldError for what goes with a role only."""
    for name in ("prefill_tokens_per_step", "max_decode_rows"):
        if getattr(asked, name) is not None:
            raise FieldError(name, "goes with a role, not with auto", "invalid_request")


def slot_mix(slot: str, asked: MixBody) -> pb.SlotMix:
    """As gRPC has it. Raises FieldError."""
    if asked.role not in ROLES:
        problem = f"must be one of {', '.join((*ROLES, AUTO))}, is {echoed(asked.role)}"
        raise FieldError("role", problem, "invalid_request")
    mix = pb.SlotMix(slot=slot, role=asked.role)
    for name in ("prefill_tokens_per_step", "max_decode_rows"):
        value = getattr(asked, name)
        if value is not None:
            setattr(mix, name, fit(value, MAX_INT32, name, "invalid_request"))
    return mix


def changes(roles: Mapping[str, str], before: pb.AdminServiceGetClusterResponse) -> Response:
    """What nodes do from now on; `was` is null while no node is there."""
    was = {node.name: node.role for node in before.cluster.nodes}
    told = [{"node": slot, "was": was.get(slot), "role": role} for slot, role in roles.items()]
    return JSONResponse({"nodes": told})
