"""`penstock tune`: the best fixed layout for a workload and an SLO, by simulation, with the whole goodput surface."""

import argparse
from collections.abc import Mapping, Sequence
from math import isfinite

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.capacity_search import Point
from cluster.console import ERR, OUT
from cluster.cost_sources import NodeKind, node_kind, tensor_sizes
from cluster.fleet_flags import fleet_problems
from cluster.fleet_plan import Arm, Recipe
from cluster.load_plots import save_surface_plot
from cluster.plotting import check_plotting
from cluster.report_file import Figure, Sample, file_problems, write_report
from cluster.simulate_command import cost_asked, notes_of, recipe_of, workload_sentence
from cluster.tune_plan import Candidate, candidates, screened
from cluster.tune_search import LIVES, Tuned, Tuner, best_of, finalists, ladder_of
from cluster.workload.traces import Trace
from cluster.workload_flags import asked_workload, slo_of
from core.errors import ConfigError
from core.request import SLO

MIN_GAIN = 1.02
"""Disaggregation must win by more than the search's own resolution to be worth its links."""


def run_tune(args: argparse.Namespace) -> int:
    """Search for every SLO, print, write. Raises ConfigError."""
    problems = [*fleet_problems(args), *file_problems(args), *_problems(args)]
    if problems:
        raise ConfigError(problems)
    if args.plot:
        check_plotting()
    trace, slos = asked_workload(args), _slos(args)
    recipe = recipe_of(args, args.tp, None, trace.workload)
    OUT.print(workload_sentence(trace.workload))
    OUT.print(f"{_num_gpus(args, recipe)} GPUs: {recipe.kind.words}")
    for note in notes_of(recipe, trace):
        OUT.print(f"note: {note}")
    figures, samples = dict[str, Figure](), list[Sample]()
    for slo in slos:
        tuned = _tuned(args, recipe, trace, slo)
        verdict = verdict_of(tuned)
        _print(tuned, slo, args.target, verdict)
        prefix = "" if len(slos) == 1 else f"{slo.ttft_s:g}:{slo.tpot_s:g}."
        figures |= {f"{prefix}{name}": value for name, value in figures_of(tuned, verdict).items()}
        samples += [sample for each in tuned for sample in _samples(each, slo)]
        if args.plot:
            save_surface_plot(_plot_path(args.plot, prefix), _curves(tuned), args.target)
    if args.json:
        write_report(args.json, "penstock tune", figures, samples)
    return 0


def verdict_of(tuned: Sequence[Tuned]) -> str:
    """What to do, in a sentence that begins with the answer."""
    together, apart = best_of(tuned, aggregated=True), best_of(tuned, aggregated=False)
    best = max((each.goodput_per_gpu for each in (together, apart) if each), default=0.0)
    if not best:
        return "Infeasible: no layout meets the SLO at any rate that was tried; relax it, or take faster or more GPUs."
    if apart is None or not apart.goodput_per_gpu:
        return f"Do not disaggregate: {_said(together)}; no disaggregated layout meets the SLO."
    if together is None or not together.goodput_per_gpu:
        return f"Disaggregate: {_said(apart)}; no aggregated layout meets the SLO."
    gain = apart.goodput_per_gpu / together.goodput_per_gpu
    if gain < MIN_GAIN:
        return f"Do not disaggregate: {_said(together)}; the best disaggregated one is {_said(apart)}, {gain:.2f}x."
    return f"Disaggregate: {_said(apart)}, {gain:.2f}x the best aggregated one, {_said(together)}."


def figures_of(tuned: Sequence[Tuned], verdict: str) -> dict[str, Figure]:
    """The figures of one SLO."""
    together, apart = best_of(tuned, aggregated=True), best_of(tuned, aggregated=False)
    best = max((each for each in (together, apart) if each), key=lambda each: each.goodput_per_gpu)
    candidate = best.candidate
    figures: dict[str, Figure] = {
        "verdict": verdict,
        "disaggregate": verdict.startswith("Disaggregate"),
        "best_layout": candidate.layout,
        "best_chunk": candidate.recipe.chunk if candidate.arm.num_mixed else candidate.recipe.prefill_chunk,
        "best_gpus_per_node": candidate.sizes,
        "goodput_rps": best.goodput_per_gpu * candidate.num_gpus,
        "goodput_rps_per_gpu": best.goodput_per_gpu,
        "simulations": sum(len(each.curve) + len(each.long_curve) for each in tuned),
    }
    for name, each in (("aggregated", together), ("disaggregated", apart)):
        if each is not None:
            figures[f"{name}_goodput_rps_per_gpu"] = each.goodput_per_gpu
    for each in tuned:
        if each.candidate.arm.adapts:
            figures["adaptive_goodput_rps_per_gpu"] = each.goodput_per_gpu
    return figures


def _tuned(args: argparse.Namespace, base: Recipe, trace: Trace, slo: SLO) -> list[Tuned]:
    kinds = _kinds(args, base)
    chunks = args.chunks if args.chunk is None else [args.chunk]
    every = list(candidates(base, kinds, _num_gpus(args, base), chunks))
    found = screened(every, trace.workload, slo, args.keep)
    ladder = tuple(sorted(args.rates)) if args.rates else ladder_of(found)
    ERR.print(f"{len(found)} of {len(every)} layouts are simulated, at up to {len(ladder)} rates and more where needed")
    tuner = Tuner(trace.workload, slo, args.seed, args.target, _say)
    if args.quick:
        _warn_of_short_runs(tuner, ladder[-1])
    tuned = [tuner.tuned(each, ladder, extends=not args.rates) for each in found]
    if args.adaptive:
        aggregated = best_of(tuned, aggregated=True)
        recipe = base if aggregated is None else aggregated.candidate.recipe
        arm = Arm(0, 0, _num_gpus(args, base) // recipe.kind.num_gpus, adapts=True)
        tuned.append(tuner.tuned(Candidate(recipe, arm), ladder, extends=not args.rates))
    if args.quick:
        return tuned
    best = finalists(tuned)
    ERR.print(f"{len(best)} of them are searched again, in runs of {LIVES * tuner.life_s:.0f} s and more")
    return [tuner.refined(each) if each in best else each for each in tuned]


def _kinds(args: argparse.Namespace, base: Recipe) -> list[NodeKind]:
    if not args.tp_sizes:
        return [base.kind]
    costs = cost_asked(args)
    there = tensor_sizes(costs) if args.tp_sizes == ["all"] else [int(size) for size in args.tp_sizes]
    kinds, problems = list[NodeKind](), list[str]()
    for size in there:
        try:
            kinds.append(node_kind(costs, size, args.pp))
        except ConfigError as error:
            problems += error.problems
    if not kinds or (problems and args.tp_sizes != ["all"]):
        raise ConfigError(problems or ["the cost table has no parallel size"])
    return kinds


def _num_gpus(args: argparse.Namespace, recipe: Recipe) -> int:
    gpus: int | None = args.gpus
    return gpus or 4 * recipe.kind.num_gpus


def _slos(args: argparse.Namespace) -> list[SLO]:
    if not args.slos:
        return [slo_of(args)]
    found = list[SLO]()
    for text in args.slos:
        ttft, _, tpot = text.partition(":")
        try:
            found.append(slo_of(argparse.Namespace(ttft_slo=float(ttft), tpot_slo=float(tpot))))
        except ValueError as error:
            raise ConfigError([f"--slos are TTFT:TPOT in seconds, not {text!r}"]) from error
    return found


def _problems(args: argparse.Namespace) -> list[str]:
    found = [f"--chunks must be at least 1, not {chunk}" for chunk in args.chunks if chunk < 1]
    found += [
        f"--rates must be above 0, not {rate:g}" for rate in args.rates or () if not (isfinite(rate) and rate > 0)
    ]
    if args.gpus is not None and args.gpus < 1:
        found.append(f"--gpus must be at least 1, not {args.gpus}")
    if not 0 < args.target <= 1:
        found.append(f"--target must be above 0 and at most 1, not {args.target:g}")
    if args.keep < 1:
        found.append(f"--keep must be at least 1, not {args.keep}")
    sizes = args.tp_sizes or []
    if sizes != ["all"] and not all(size.isdecimal() and int(size) for size in sizes):
        found.append(f"--tp-sizes are numbers from 1 on, or 'all', not {' '.join(sizes)}")
    return found


# ── saying ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _say(candidate: Candidate, point: Point) -> None:
    ERR.print(f"{candidate}: {point.rate_rps:.3g} req/s, {point.attainment:.1%}")


def _warn_of_short_runs(tuner: Tuner, rate: float) -> None:
    seconds, needed_s = tuner.workload.at_rate(rate).arrivals_s, LIVES * tuner.life_s
    if seconds < needed_s:
        life = f"{LIVES} times the {tuner.life_s:.1f} s that a request may take"
        OUT.print(f"note: at {rate:.3g} req/s requests come for {seconds:.0f} s, less than {life}: queues cannot grow")


def _print(tuned: Sequence[Tuned], slo: SLO, target: float, verdict: str) -> None:
    OUT.print(surface_table(tuned, slo, target))
    OUT.print(verdict)


def surface_table(tuned: Sequence[Tuned], slo: SLO, target: float) -> Table:
    """Attainment by layout, chunk and rate; what was not simulated is left blank."""
    rates = sorted({point.rate_rps for each in tuned for point in each.curve})
    title = (
        f"Attainment by req/s, SLO: TTFT {slo.ttft_s * 1000:g} ms and TPOT {slo.tpot_s * 1000:g} ms; then req/s per "
        f"GPU at {target:.0%}, in short and in long runs"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layout", no_wrap=True)
    for column in ("chunk", "GPUs", *(f"{rate:.3g}" for rate in rates), "short", "long"):
        table.add_column(column, justify="right")
    for each in sorted(tuned, key=lambda each: (each.bisected is None, -each.goodput_per_gpu)):
        by_rate = {point.rate_rps: f"{point.attainment:.0%}" for point in each.curve}
        candidate = each.candidate
        chunk = candidate.recipe.chunk if candidate.arm.num_mixed else candidate.recipe.prefill_chunk
        cells = [by_rate.get(rate, "") for rate in rates]
        short = f"{each.capacity.rate_rps / candidate.num_gpus:.3f}"
        long = "" if each.bisected is None else f"{each.goodput_per_gpu:.3f}"
        layout = candidate.layout.replace("disaggregated:", "P:D ")
        table.add_row(layout, str(chunk), candidate.sizes, *cells, short, long)
    return table


def _said(tuned: Tuned | None) -> str:
    assert tuned is not None
    return f"{tuned.candidate} with {tuned.goodput_per_gpu:.3f} req/s/GPU"


def _curves(tuned: Sequence[Tuned]) -> list[tuple[str, list[float], list[float]]]:
    return [
        (
            str(each.candidate),
            [point.rate_rps / each.candidate.num_gpus for point in each.curve],
            [point.attainment for point in each.curve],
        )
        for each in tuned
    ]


def _samples(tuned: Tuned, slo: SLO) -> list[Mapping[str, object]]:
    candidate, found = tuned.candidate, tuned.bisected or tuned.capacity
    base = {
        "ttft_slo_s": slo.ttft_s,
        "tpot_slo_s": slo.tpot_s,
        "layout": candidate.layout,
        "chunk": candidate.recipe.chunk,
        "prefill_chunk": candidate.recipe.prefill_chunk,
        "gpus_per_node": candidate.sizes,
        "gpus": candidate.num_gpus,
    }
    points = [
        {"kind": kind, **base, "rate_rps": point.rate_rps, "attainment": point.attainment}
        for kind, curve in (("point", tuned.curve), ("long run", tuned.long_curve))
        for point in curve
    ]
    capacity = {"rate_rps": found.rate_rps, "method": found.method, "bracketed": found.is_bracketed}
    return [*points, {"kind": "capacity", **base, **capacity, "forecast_rps": candidate.forecast_rps}]


def _plot_path(path: str, prefix: str) -> str:
    stem, dot, ending = path.rpartition(".")
    return f"{stem}-{prefix.rstrip('.').replace(':', '-')}{dot}{ending}" if prefix and dot else path
