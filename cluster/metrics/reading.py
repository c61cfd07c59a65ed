"""Looks at everything that is there, and puts it under the names of the table: facts of others, none counted twice."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING

from cluster.gateway.cluster_state import ClusterState, NodeState
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys import ServiceClass
from cluster.gateway.operator import SlotView
from cluster.kube.cluster_api import Trouble
from cluster.kubernetes import ScalingCounters
from cluster.metrics.config import ObservationConfig
from cluster.metrics.history import NodeWork
from cluster.metrics.readings import Readings
from cluster.metrics.tally import RequestTally
from core.ids import node_name
from core.stats import BlockCounts, NodeStats

if TYPE_CHECKING:
    from cluster.batches.batches import BatchCounts

ROLES = ("prefill", "decode", "mixed", "closed")
BLOCK_STATES = tuple(field.name for field in fields(BlockCounts) if field.name != "capacity")
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Paid:
    """Time that nodes were there, all together, and its price, also by tenant; None where nobody named one."""

    node_seconds: float
    cost: float | None
    tenant_costs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class NodeEffort:
    """A node's estimated work so far and its rate of late; None where it cannot be estimated, or is not known yet."""

    work: NodeWork | None
    rates: NodeWork | None


def read_requests(into: Readings, tally: RequestTally, classes: Sequence[ServiceClass]) -> None:
    """What ended, what was turned away, and how long it took."""
    for (slo_class, tenant, outcome, slo), number in sorted(tally.requests.items()):
        into.put("penstock_requests", number, slo_class, tenant, outcome, slo)
    for (slo_class, tenant), number in sorted(tally.goodput.items()):
        into.put("penstock_goodput_requests", number, slo_class, tenant)
    into.put("penstock_slo_requests", tally.num_counted)
    for name, counts in (
        ("penstock_slo_misses", tally.misses),
        ("penstock_refusals", tally.refusals),
        ("penstock_failures", tally.failures),
        ("penstock_prompt_tokens", tally.prompt_tokens),
        ("penstock_cached_tokens", tally.cached_tokens),
        ("penstock_generation_tokens", tally.generation_tokens),
    ):
        for label, number in sorted(counts.items()):
            into.put(name, number, label)
    into.put("penstock_retries", tally.num_retries)
    for slo_class, times in sorted(tally.classes.items()):
        into.put_histogram("penstock_ttft_seconds", times.ttft, slo_class)
        into.put_histogram("penstock_tpot_seconds", times.tpot, slo_class)
        into.put_histogram("penstock_itl_seconds", times.itl, slo_class)
        into.put_histogram("penstock_e2e_seconds", times.e2e, slo_class)
    for stage, histogram in tally.stages.items():
        into.put_histogram("penstock_stage_seconds", histogram, stage)
    for each in classes:
        if each.slo is not None:
            into.put("penstock_slo_target_seconds", each.slo.ttft_s, each.name, "ttft")
            into.put("penstock_slo_target_seconds", each.slo.tpot_s, each.name, "tpot")


def read_gateway(into: Readings, gateway: Gateway, state: ClusterState, lag_s: float) -> None:
    """The gateway itself."""
    into.put("penstock_open_requests", gateway.streams.num_open)
    into.put("penstock_serving", state.can_serve)
    into.put("penstock_draining", gateway.is_draining)
    into.put("penstock_event_loop_lag_seconds", lag_s)
    into.put("penstock_build_info", 1, version("penstock"))


def read_nodes(into: Readings, state: ClusterState, slots: Sequence[SlotView]) -> None:
    """The nodes that are there, and the places for them."""
    roles = [node.mix.role for node in state.nodes]
    for role in ROLES:
        into.put("penstock_nodes", roles.count(role), role)
    for slot in slots:
        into.put("penstock_node_up", slot.node is not None and slot.state == RUNNING, slot.name)
        into.put("penstock_node_deaths", slot.num_deaths, slot.name)
    for node in state.nodes:
        _read_node(into, node, node_name(node.id))


def _read_node(into: Readings, node: NodeState, name: str) -> None:
    for role in ROLES:
        into.put("penstock_node_role", role == node.mix.role, name, role)
    into.put("penstock_node_prefill_tokens_per_step", node.mix.prefill_tokens_per_step, name)
    into.put("penstock_node_max_decode_rows", node.mix.max_decode_rows, name)
    for moved in node.transfers.moved:
        into.put("penstock_kv_received_bytes", moved.num_bytes, name, moved.transport)
        into.put("penstock_kv_fetches", moved.num_fetches, name, moved.transport)
    ways = [link.transport for link in node.transfers.links]
    for way in sorted(set(ways)):
        into.put("penstock_kv_links", ways.count(way), name, way)
    for event, number in node.transfers.counts:
        into.put("penstock_kv_events", number, name, event)
    if node.stats is not None:
        _read_stats(into, node.stats, name)


def _read_stats(into: Readings, stats: NodeStats, name: str) -> None:
    work = stats.work
    for metric, value in (
        ("running_rows", stats.running_rows),
        ("prefilling", stats.prefilling),
        ("incoming", stats.incoming),
        ("leases", stats.leases),
        ("queued_tokens", stats.queued_tokens),
        ("queued_offline_tokens", stats.queued_offline_tokens),
        ("busy_seconds", stats.busy_s),
        ("prompt_tokens", stats.num_prompt_tokens),
        ("cached_tokens", stats.num_cached_tokens),
        ("restores", stats.num_restored),
        ("migrations", stats.num_migrated),
        ("draft_tokens", stats.num_drafted),
        ("accepted_tokens", stats.num_accepted),
        ("dropped_events", stats.num_dropped_events),
    ):
        into.put(f"penstock_node_{metric}", value, name)
    for kind, steps in (
        ("prefill", work.num_prefill_steps - work.num_mixed_steps),
        ("mixed", work.num_mixed_steps),
        ("decode", work.num_decode_steps),
    ):
        into.put("penstock_node_steps", steps, name, kind)
    into.put("penstock_node_computed_tokens", work.prefill_tokens, name, "prefill")
    into.put("penstock_node_computed_tokens", work.num_rows, name, "decode")
    into.put("penstock_node_preemptions", stats.num_preempted, name, "recompute")
    into.put("penstock_node_preemptions", stats.num_saved, name, "save")
    for block_state in BLOCK_STATES:
        into.put("penstock_kv_blocks", getattr(stats.blocks, block_state), name, block_state)


def read_controller(into: Readings, state: ClusterState) -> None:
    """Who steers the nodes."""
    for kind, number in state.decided.kinds:
        into.put("penstock_decisions", number, kind)
    for was, becomes, number in state.decided.mix_changes:
        into.put("penstock_mix_changes", number, was, becomes)
    into.put("penstock_infeasible", state.decided.is_infeasible)
    if state.wanted_nodes is not None:
        into.put("penstock_wanted_nodes", state.wanted_nodes)


def read_kube(into: Readings, counters: ScalingCounters) -> None:
    """The one that moves the fleet on Kubernetes."""
    into.put("penstock_kube_leader", counters.is_leader)
    for name, size in (
        ("wanted_nodes", counters.wanted_nodes),
        ("replicas", counters.pod_replicas),
        ("old_pods", counters.old_pods),
    ):
        if size is not None:
            into.put(f"penstock_kube_{name}", size)
    into.put("penstock_kube_rounds", counters.num_rounds)
    into.put("penstock_kube_writes", counters.num_writes)
    for kind, number in (
        ("added", counters.num_added),
        ("drained", counters.num_drains),
        ("kept", counters.num_drains_called_off),
        ("removed", counters.num_removed),
        ("renewed", counters.num_renewed),
    ):
        into.put("penstock_kube_changes", number, kind)
    for trouble in Trouble:
        into.put("penstock_kube_troubles", counters.of(trouble), trouble.value)
    into.put("penstock_kube_lost_events", counters.num_lost_events)


def read_effort(into: Readings, name: str, effort: NodeEffort, config: ObservationConfig) -> None:
    """What one node gave of what its hardware has."""
    peaks = (config.peak_flops, config.peak_bytes_per_s)
    for metric, peak in zip(("peak_flops", "peak_bytes_per_second"), peaks, strict=True):
        if peak is not None:
            into.put(f"penstock_node_{metric}", peak, name)
    if effort.work is not None:
        into.put("penstock_node_model_flops", effort.work.flops, name)
        into.put("penstock_node_model_bytes", effort.work.bytes_read, name)
    if effort.rates is not None and config.peak_flops is not None:
        into.put("penstock_node_mfu_ratio", effort.rates.flops / config.peak_flops, name)
    if effort.rates is not None and config.peak_bytes_per_s is not None:
        into.put("penstock_node_mbu_ratio", effort.rates.bytes_read / config.peak_bytes_per_s, name)


def read_batches(into: Readings, counts: "BatchCounts") -> None:
    """Batch files."""
    for status, number in counts.statuses:
        into.put("penstock_batches", number, status.value)
    into.put("penstock_batch_requests", counts.num_waiting, "queued")
    into.put("penstock_batch_requests", counts.num_at_work, "running")
    into.put("penstock_batch_requests_ended", counts.num_answered, "answered")
    into.put("penstock_batch_requests_ended", counts.num_failed, "failed")


def read_paid(into: Readings, paid: Paid, num_tokens: int) -> None:
    """What the nodes cost."""
    into.put("penstock_node_seconds", paid.node_seconds)
    if paid.cost is not None:
        into.put("penstock_cost", paid.cost)
        for tenant, cost in sorted(paid.tenant_costs):
            into.put("penstock_tenant_cost", cost, tenant)
        if num_tokens:
            into.put("penstock_cost_per_million_tokens", paid.cost / num_tokens * 1e6)
