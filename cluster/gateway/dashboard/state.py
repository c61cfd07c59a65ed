"""What the dashboard is told each second: the cluster now, and the samples, requests and decisions it has not seen."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version

from cluster.gateway.cluster_state import ClusterState, NodeState
from cluster.gateway.operator import SlotView
from cluster.load_report import STAGES
from cluster.metrics.ended import EndedRequest
from cluster.metrics.exposition import readings_of
from cluster.metrics.history import Sample
from cluster.metrics.observation import Observation
from cluster.metrics.reading import NodeEffort
from core.decisions import Decision
from core.ids import node_name

Json = dict[str, object]

BROKEN_DOWN = (
    "penstock_requests",
    "penstock_slo_misses",
    "penstock_refusals",
    "penstock_failures",
    "penstock_decisions",
)
"""Metrics of which the page shows the parts, too."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The last numbers that a page has; 0: none yet. `minute` is None where it does not look at a whole day."""

    sample: int = 0
    request: int = 0
    decision: int = 0
    minute: int | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """The same moment on both clocks: the monotonic one, and seconds since the epoch."""

    now: float
    wall_s: float

    def wall(self, at: float) -> float:
        """A monotonic moment since the epoch."""
        return self.wall_s - (self.now - at)


def dashboard_state(observation: Observation, seen: Seen, clock: Clock) -> Json:
    """All of it, as JSON has it."""
    gateway, state = observation.gateway, observation.operator.shown()
    readings = readings_of(observation)
    return {
        "gateway": gateway.streams.gateway,
        "now": clock.wall_s,
        "version": version("penstock"),
        "model": {"name": gateway.model.name, "can_chat": gateway.tokenizer.can_chat},
        "serving": state.can_serve,
        "draining": gateway.is_draining,
        "controller": observation.operator.controller(),
        "infeasible": state.decided.is_infeasible,
        "wanted_nodes": state.wanted_nodes,
        "targets": [
            {"class": each.name, "ttft_s": each.slo.ttft_s, "tpot_s": each.slo.tpot_s}
            for each in gateway.access.classes
            if each.slo is not None
        ],
        "stages": STAGES,
        "totals": readings.totals(),
        "parts": {name: [[*labels, value] for labels, value in readings.values(name)] for name in BROKEN_DOWN},
        "nodes": _nodes(observation, state),
        "samples": _samples(observation.history.samples, seen.sample, clock),
        "minutes": [] if seen.minute is None else _samples(observation.history.minutes, seen.minute, clock),
        "requests": [_request(each) for each in observation.ended if each.number > seen.request],
        "decisions": [_decision(*each, clock) for each in state.decisions if each[0] > seen.decision],
    }


def _nodes(observation: Observation, state: ClusterState) -> list[Json]:
    nodes = {node.id: node for node in state.nodes}
    efforts = observation.efforts(state)
    return [
        _slot(slot, None if slot.node is None else nodes.get(slot.node), efforts.get(slot.name), observation)
        for slot in observation.slots()
    ]


def _slot(slot: SlotView, node: NodeState | None, effort: NodeEffort | None, observation: Observation) -> Json:
    found: Json = {
        "name": slot.name,
        "state": slot.state,
        "up": node is not None,
        "role": slot.mix.role,
        "deaths": slot.num_deaths,
        "set_by": "drain" if slot.is_drained else "hand" if slot.is_overridden else "",
        "prefill_tokens_per_step": slot.mix.prefill_tokens_per_step,
        "max_decode_rows": slot.mix.max_decode_rows,
    }
    if node is None:
        return found
    found |= {
        "pid": node.pid,
        "kv_bytes": node.kv_bytes_received,
        "fetches": node.num_fetches,
        "links": [[node_name(link.peer), link.transport, link.why] for link in node.transfers.links],
        "moved": [[each.transport, each.num_fetches, each.num_bytes] for each in node.transfers.moved],
        "events": [list(pair) for pair in node.transfers.counts],
    }
    if node.stats is not None:
        stats = node.stats
        found |= {
            "running_rows": stats.running_rows,
            "prefilling": stats.prefilling,
            "incoming": stats.incoming,
            "leases": stats.leases,
            "queued_tokens": stats.queued_tokens,
            "steps": stats.num_steps,
            "busy_s": stats.busy_s,
            "blocks": asdict(stats.blocks),
        }
    return found | _utilisation(effort, observation)


def _utilisation(effort: NodeEffort | None, observation: Observation) -> Json:
    config = observation.config
    found: Json = {}
    if effort is not None and effort.rates is not None:
        if config.peak_flops is not None:
            found["mfu"] = effort.rates.flops / config.peak_flops
        if config.peak_bytes_per_s is not None:
            found["mbu"] = effort.rates.bytes_read / config.peak_bytes_per_s
    return found


def _samples(samples: Iterable[Sample], seen: int, clock: Clock) -> list[Json]:
    return [_sample(each, clock) for each in samples if each.number > seen]


def _sample(sample: Sample, clock: Clock) -> Json:
    return {
        "number": sample.number,
        "at": clock.wall(sample.at),
        "met": sample.num_met,
        "counted": sample.num_counted,
        "ended": sample.num_ended,
        "came": sample.num_ended + sample.num_open + sample.num_turned_away,
        "tokens": sample.generation_tokens,
        "open": sample.num_open,
        "rows": sample.running_rows,
        "queued_tokens": sample.queued_tokens,
        "kv_bytes": sample.kv_bytes,
        "incoming": sample.incoming,
        "leases": sample.leases,
        "roles": dict(sample.roles),
        "blocks": dict(sample.blocks),
        "wanted": sample.wanted_nodes,
    }


def _request(ended: EndedRequest) -> Json:
    ledger, timing = ended.ledger, ended.ledger.timing
    return {
        "number": ended.number,
        "id": ledger.id,
        "client_id": ledger.facts.client_id,
        "class": ledger.slo_class,
        "outcome": ledger.outcome.value,
        "code": ledger.code,
        "met": ledger.met,
        "lost_at": ended.lost_at,
        "at": ended.received_wall_s,
        "wall_s": ledger.wall_s,
        "ttft_s": ledger.ttft_s,
        "tpot_s": ledger.record.tpot_s,
        "slo_ttft_s": None if ledger.slo is None else ledger.slo.ttft_s,
        "slo_tpot_s": None if ledger.slo is None else ledger.slo.tpot_s,
        "prompt_tokens": ledger.num_prompt_tokens,
        "cached_tokens": ledger.num_cached_tokens,
        "tokens": ledger.num_tokens,
        "attempts": ledger.num_attempts,
        "prefill_node": ended.nodes.prefill,
        "decode_node": ended.nodes.decode,
        "stages_s": [getattr(timing, f"{stage}_s") for stage in STAGES],
    }


def _decision(number: int, decision: Decision, clock: Clock) -> Json:
    return {
        "number": number,
        "at": clock.wall(decision.at),
        "kind": decision.kind.value,
        "reason": decision.reason,
        "steps": [_step(each.node, each.was.role, each.becomes.role) for each in decision.steps],
        "goodput_before_rps": decision.goodput_before_rps,
        "goodput_after_rps": decision.goodput_after_rps,
        "facts": _facts((fact.name, fact.value) for fact in decision.facts),
    }


def _step(node: str, was: str, becomes: str) -> list[str]:
    return [node.partition("@")[0], was, becomes]


def _facts(facts: Iterable[tuple[str, float]]) -> list[list[object]]:
    return [[name, value] for name, value in facts]
