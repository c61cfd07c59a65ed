"""What routers and operators ask of the cluster over HTTP: its load, all it is, its decisions, a request's trace."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cluster.gateway.chrome_trace import STAGES, UNACCOUNTED, TracedRequest, trace_of
from cluster.gateway.cluster_state import ClusterState, NodeState
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.ledger import bare_id
from cluster.gateway.messages import cluster_message, decision_message
from cluster.metrics.ended import EndedRequest
from cluster.metrics.observation import Observation
from cluster.metrics.routes import check_operator
from core.ids import node_name

LOOK_S = 0.5
KEEP_ALIVE_S = 15.0

SUMS = (
    *("num_running_reqs", "num_waiting_reqs", "num_used_tokens", "max_total_num_tokens"),
    "num_waiting_uncached_tokens",
)
NOT_KEPT = {"cache-control": "no-store"}
Json = dict[str, object]


def cluster_routes(observation: Observation) -> APIRouter:
    """The routes of this file. Where keys are asked for they need an operator's, but for traces of one's own."""
    router = APIRouter(tags=["cluster"])
    gateway, operator = observation.gateway, observation.operator
    access = gateway.access

    @router.get("/load", summary="The load of every node")
    async def load(request: Request) -> Response:
        """Running and waiting requests and tokens, by SGLang's names. Null: a node has not reported yet."""
        check_operator(access, request)
        told = load_of(operator.shown(), gateway.streams.num_open, gateway.model.block_size)
        return JSONResponse(told, headers=NOT_KEPT)

    @router.get("/cluster", summary="What the cluster is and does now")
    async def cluster(request: Request) -> Response:
        """As gRPC's GetCluster tells it: nodes, blocks, decisions, the last requests."""
        check_operator(access, request)
        return JSONResponse(plain(cluster_message(gateway, operator.shown(), time.monotonic())), headers=NOT_KEPT)

    @router.get("/cluster/events", summary="What changes, as it does")
    async def events(request: Request) -> Response:
        """Server-sent events until the server stops: `decision` with its reason and figures, the last ones first, and
        `nodes` whenever one comes, goes or has another role."""
        check_operator(access, request)
        return StreamingResponse(_changes(observation), media_type="text/event-stream", headers=NOT_KEPT)

    @router.get("/trace/{name}", summary="Where one request's time went")
    async def trace(name: str, request: Request) -> Response:
        """In Chrome's format, for ui.perfetto.dev, by an answer's id or its x-request-id; the last 1,024 are kept."""
        caller = access.caller(request.headers.get("authorization"), time.time())
        sees_all = access.is_open or caller.grant.is_admin
        known = [it for it in observation.ended if sees_all or it.ledger.tenant == caller.grant.tenant]
        found = [it for it in known if name == it.ledger.facts.client_id or bare_id(name) == it.ledger.id]
        if not found:
            raise FieldError("id", f"none of the last {len(known)} requests was {echoed(name)}", "not_found")
        return JSONResponse(trace_of(map(_traced, found)), headers=NOT_KEPT)

    return router


def load_of(state: ClusterState, num_open: int, block_size: int) -> Json:
    """The nodes' last reports and their sums. `num_open_reqs` are those of this gateway, every choice counted."""
    nodes = [_node_load(node, block_size) for node in state.nodes]
    told = [node for node in nodes if node["token_usage"] is not None]
    total: Json = {name: sum(_number(node[name]) for node in told) for name in SUMS}
    capacity = _number(total["max_total_num_tokens"])
    usage = _number(total["num_used_tokens"]) / capacity if capacity else None
    return {"nodes": nodes, "total": {**total, "token_usage": usage, "num_open_reqs": num_open}}


def _node_load(node: NodeState, block_size: int) -> Json:
    """A request that waits here has its prompt queued or computed, or its KV on its way."""
    load: Json = {"node": node_name(node.id), "id": node.id, "role": node.mix.role}
    if node.stats is None:
        return {**load, **dict.fromkeys((*SUMS, "token_usage"))}
    blocks = node.stats.blocks
    used = blocks.capacity - blocks.free - blocks.cached
    return {
        **load,
        "num_running_reqs": node.stats.running_rows,
        "num_waiting_reqs": node.stats.prefilling + node.stats.incoming,
        "num_used_tokens": used * block_size,
        "max_total_num_tokens": blocks.capacity * block_size,
        "num_waiting_uncached_tokens": node.stats.queued_tokens,
        "token_usage": used / blocks.capacity,
    }


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


async def _changes(observation: Observation) -> AsyncIterator[str]:
    """Looks twice a second, as gateways that joined are told of the cluster no sooner."""
    told, quiet_s = 0, 0.0
    nodes: list[Json] = []
    while not observation.gateway.is_draining:
        state = observation.operator.shown()
        events = [
            _event("decision", plain(decision_message(number, decision, time.monotonic())))
            for number, decision in state.decisions
            if number > told
        ]
        told = max((number for number, _ in state.decisions), default=told)
        now: list[Json] = [{"node": node_name(it.id), "id": it.id, "role": it.mix.role} for it in state.nodes]
        if now != nodes:
            nodes = now
            events.append(_event("nodes", {"nodes": now}))
        quiet_s = 0.0 if events else quiet_s + LOOK_S
        if quiet_s >= KEEP_ALIVE_S:
            events, quiet_s = [": keep-alive\n\n"], 0.0
        if events:
            yield "".join(events)
        await asyncio.sleep(LOOK_S)


def _event(kind: str, data: Json) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def plain(message: Message) -> Json:
    """A message as JSON with numbers for numbers: protobuf's own form writes long ones as text. Absent is null."""
    told: Json = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            told[field.name] = [plain(it) if isinstance(it, Message) else it for it in value]
        elif field.has_presence and not message.HasField(field.name):
            told[field.name] = None
        else:
            told[field.name] = plain(value) if isinstance(value, Message) else value
    return told


def _traced(ended: EndedRequest) -> TracedRequest:
    ledger = ended.ledger
    stages = {stage: float(getattr(ledger.timing, f"{stage}_s")) for stage in STAGES if stage != UNACCOUNTED}
    return TracedRequest(
        name=f"{ledger.id[:12]} {ledger.outcome.value}",
        stages_s={**stages, UNACCOUNTED: ledger.unaccounted_s},
        start_s=ended.received_wall_s,
        first_token_s=ledger.ttft_s,
        num_attempts=ledger.num_attempts,
        prefill_node=ended.nodes.prefill,
        decode_node=ended.nodes.decode,
        facts={
            "id": ledger.id,
            "x-request-id": ledger.facts.client_id,
            "prompt_tokens": ledger.num_prompt_tokens,
            "cached_tokens": ledger.num_cached_tokens,
            "completion_tokens": ledger.num_tokens,
            "attempts": ledger.num_attempts,
            "slo_met": ledger.met,
            "lost_at": ended.lost_at,
            "code": ledger.code,
        },
    )
