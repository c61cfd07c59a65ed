"""`penstock simulate`: a workload on a simulated cluster; the same scheduler and nodes as live, in virtual time."""

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.console import OUT
from cluster.cost_sources import CostAsked, NodeKind, node_kind
from cluster.fleet_flags import FEW_NODES, fleet_problems
from cluster.fleet_plan import Arm, Recipe, arm_of
from cluster.load_plots import save_run_plot
from cluster.load_report import request_samples
from cluster.load_tables import groups_table, losses_table, summary_lines, summary_table
from cluster.plotting import check_plotting
from cluster.report_file import Figure, Sample, file_problems, write_report
from cluster.simulated.shared_links import FleetLinks
from cluster.simulated.truth_roofline import Efficiency
from cluster.simulation import Simulated, longest_context, simulate
from cluster.workload.items import Workload
from cluster.workload.traces import Trace
from cluster.workload_flags import asked_workload, slo_of
from core.errors import ConfigError
from core.request import SLO
from scheduler.config import SchedulerConfig

DEFAULT_CHUNK = 2048
MAX_DECISIONS = 12
"""So many are printed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """All that was asked for, checked."""

    recipe: Recipe
    arm: Arm
    trace: Trace
    slo: SLO
    seed: int


def run_simulate(args: argparse.Namespace) -> int:
    """Simulate, print, write. Raises ConfigError."""
    asked = _asked(args)
    began = time.monotonic()
    run = simulate(asked.recipe, asked.arm, asked.trace.workload, asked.slo, asked.seed)
    took_s = time.monotonic() - began
    figures = run.figures() | {"rate_rps": asked.trace.workload.rate_rps}
    _print(asked, run, figures, took_s)
    if args.json:
        write_report(args.json, "penstock simulate", figures, _samples(asked, run))
    if args.plot:
        changes = [(change.at_s, change.node) for change in run.fleet.mix_changes if change.at_s > 0]
        save_run_plot(args.plot, run.load, asked.slo, changes)
    return 0


def _asked(args: argparse.Namespace) -> Asked:
    problems = [*fleet_problems(args), *file_problems(args)]
    if problems:
        raise ConfigError(problems)
    if args.plot:
        check_plotting()
    slo, trace = slo_of(args), asked_workload(args)
    arm = arm_of(args.layout, args.nodes)
    arm = replace(arm, replays=arm.num_nodes <= FEW_NODES if args.replays is None else args.replays)
    recipe = recipe_of(args, args.tp, args.prefill_tp, trace.workload)
    return Asked(recipe, arm, trace, slo, args.seed)


def cost_asked(args: argparse.Namespace) -> CostAsked:
    """Where step times come from, by the flags."""
    return CostAsked(
        table=None if args.cost_table is None else Path(args.cost_table).expanduser(),
        beside=None if args.beside_table is None else Path(args.beside_table).expanduser(),
        step_overhead_s=args.step_overhead,
        row_overhead_s=args.row_overhead,
        gpu=args.gpu,
        shape=args.model_shape,
        model=args.cost_model,
        hardware=args.cost_hardware,
        token_curve=args.token_curve,
        efficiency=Efficiency(args.mfu, args.mbu, overhead_s=args.step_overhead),
        bytes_per_weight=args.weight_bytes,
        kv_dtype=args.kv_dtype,
        kv_tokens=args.kv_tokens,
        block_size=args.block_size,
    )


def recipe_of(args: argparse.Namespace, tp: int | None, prefill_tp: int | None, workload: Workload) -> Recipe:
    """Nodes of these sizes by the flags, for this workload. Raises ConfigError."""
    costs = cost_asked(args)
    kind = node_kind(costs, tp, args.pp)
    prefill_kind: NodeKind | None = None
    if prefill_tp is not None or args.prefill_pp is not None:
        prefill_kind = node_kind(costs, prefill_tp or tp, args.prefill_pp or args.pp)
    bandwidth = args.link_gb_s * 1e9
    scheduler = SchedulerConfig(refuses_unattainable=not args.no_refusals, handoff_bytes_per_s=bandwidth)
    chunk = args.chunk or DEFAULT_CHUNK
    return Recipe(
        kind=kind,
        links=FleetLinks(bandwidth, args.link_latency, args.message_latency),
        max_model_len=args.max_model_len or longest_context(workload),
        chunk=chunk,
        prefill_chunk=args.prefill_chunk,
        max_decode_rows=args.max_num_seqs,
        gpu_hour_price=args.gpu_hour_price,
        policy=args.policy,
        scheduler=scheduler,
        prefill_kind=prefill_kind,
    )


def workload_sentence(workload: Workload) -> str:
    """A workload in a line."""
    number = len(workload.items)
    return (
        f"{workload.name}: {number:,} requests in {workload.arrivals_s:,.0f} s ({workload.rate_rps:.3g} req/s), "
        f"{workload.prompt_tokens / number:,.0f} tokens in and {workload.output_tokens / number:,.0f} out on average"
    )


def notes_of(recipe: Recipe, trace: Trace) -> list[str]:
    """What was assumed, and what was done to the workload."""
    notes = [*trace.notes, *recipe.kind.notes]
    num_long = sum(i.prompt_tokens + i.output_tokens > recipe.max_model_len for i in trace.workload.items)
    if num_long:
        notes.append(f"{num_long} requests exceed {recipe.max_model_len:,} tokens of context: refused at the door")
    return notes


def _print(asked: Asked, run: Simulated, figures: dict[str, Figure], took_s: float) -> None:
    recipe = asked.recipe
    OUT.print(workload_sentence(asked.trace.workload))
    prefill = f"; prefill nodes {recipe.prefill_kind.words}" if recipe.prefill_kind and asked.arm.num_prefill else ""
    pool = recipe.kind.num_blocks * recipe.kind.kv.block_size
    OUT.print(f"{asked.arm}, policy {recipe.policy}: {recipe.kind.words}, {pool:,} tokens of KV{prefill}")
    for note in notes_of(recipe, asked.trace):
        OUT.print(f"note: {note}")
    OUT.print(summary_table("Simulated", figures))
    for line in summary_lines(figures, asked.slo):
        OUT.print(line)
    records = list(run.load.records)
    for table in (losses_table(figures), groups_table(records, run.load.arrivals_s)):
        if table is not None:
            OUT.print(table)
    for decision in run.fleet.decisions[:MAX_DECISIONS]:
        OUT.print(f"at {decision.at:.1f} s: {decision}")
    if len(run.fleet.decisions) > MAX_DECISIONS:
        OUT.print(f"… and {len(run.fleet.decisions) - MAX_DECISIONS} more decisions (--json has all)")
    if run.fleet.num_extrapolated:
        steps = f"{run.fleet.num_extrapolated:,} of {figures['steps']:,} steps"
        OUT.print(f"note: the cost table does not cover {steps}: extrapolated in proportion")
    OUT.print(f"{run.load.duration_s:,.0f} s simulated in {took_s:.1f} s")


def _samples(asked: Asked, run: Simulated) -> list[Sample]:
    workload, recipe = asked.trace.workload, asked.recipe
    samples: list[Sample] = [
        {
            "kind": "run",
            "workload": workload.name,
            "notes": notes_of(recipe, asked.trace),
            "layout": str(asked.arm),
            "policy": recipe.policy,
            "nodes": recipe.kind.words,
            "prefill_nodes": (recipe.prefill_kind or recipe.kind).words,
            "chunk": recipe.chunk,
            "prefill_chunk": recipe.prefill_chunk,
            "kv_tokens": recipe.kind.num_blocks * recipe.kind.kv.block_size,
            "ttft_slo_s": asked.slo.ttft_s,
            "tpot_slo_s": asked.slo.tpot_s,
            "seed": asked.seed,
        }
    ]
    samples += [{"kind": "node", **asdict(node)} for node in run.fleet.nodes]
    samples += [{"kind": "mix change", **asdict(change)} for change in run.fleet.mix_changes]
    samples += [{"kind": "decision", "at_s": each.at, "text": str(each)} for each in run.fleet.decisions]
    samples += [{"kind": "error", "code": code, "requests": number} for code, number in run.fleet.errors]
    return samples + request_samples(run.load.records)
