"""No regret: the controller against the better of two tuned fixed arms in every cell of TTFT and TPOT. Simulated."""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from cluster.cost_sources import NodeKind
from cluster.plotting import pyplot
from cluster.report_file import Figure, Sample, write_report
from cluster.simulated.truth import StraightTruth
from cluster.simulated.truth_table import TableTruth
from cluster.tune_plan import Candidate
from cluster.workload.items import Workload
from cluster.workload.spec import workload_of
from core.request import SLO
from engine.cost_table import CostTable
from experiments.arms import (
    Found,
    Runs,
    adaptive,
    aggregated,
    arguments,
    by_forecast,
    disaggregated,
    mean,
    recipe_for,
    roofline,
    say,
)

TTFTS = (1.5, 2.0, 3.0, 6.0, 12.0)
TPOTS = (0.010, 0.015, 0.020, 0.030, 0.050)
NUM_NODES = 4
CHUNKS = (128, 256, 512, 1024, 2048)
PREFILL_CHUNKS = (8192,)
WORKLOAD = "lengths,in=lognormal:16000:0.6:64000,out=lognormal:400:0.6:2000,rate=4"
START_RPS = 3.5
H200_TABLE = Path(__file__).parent.parent / "tables/h200-llama-3-8b.json"
WARM_UP_S = 10.0
"""Requests that come before are served and not counted, in all arms: the controller begins without a plan."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One SLO. Goodputs, in requests per second, at `rate_rps`: the highest rate that either fixed arm holds."""

    slo: SLO
    together: Found
    apart: Found
    rate_rps: float
    goodput_together: float
    goodput_apart: float
    goodput_adaptive: float
    adaptive_rps: float
    mix_changes: float

    @property
    def ratio(self) -> float:
        """Adaptive over the better fixed arm, by goodput at the same rate: never above 1 / attainment."""
        return self.goodput_adaptive / max(self.goodput_together, self.goodput_apart)

    @property
    def capacity_ratio(self) -> float:
        """Adaptive over the better fixed arm, by the highest rate that each holds."""
        return self.adaptive_rps / self.rate_rps


def kind_of(steps: str) -> NodeKind:
    """The nodes, by how long their steps take. `roofline`: the parts of a step hide behind each other; `serial`: they
    come one after the other, as in an engine that computes prompts and rows by kernels of their own; `measured`: as
    this engine was measured on an H200."""
    kind = roofline("H200", "llama-3-8b")
    if steps == "serial":
        return replace(kind, truth=StraightTruth(replace(kind.truth.belief(), overlap=0.0)))
    if steps == "measured":
        return replace(kind, truth=TableTruth(CostTable.read(H200_TABLE)))
    return kind


def cell_of(steps: str, workloads: Sequence[Workload], slo: tuple[float, float]) -> Cell | None:
    """Tune both fixed arms, then all three at the same rate; None where neither fixed arm holds any rate."""
    runs = Runs(workloads, SLO(*slo), warm_up_s=WARM_UP_S)
    recipe = recipe_for(kind_of(steps), workloads[0])
    together = _tuned(runs, aggregated(recipe, NUM_NODES, CHUNKS))
    apart = _tuned(runs, disaggregated(recipe, NUM_NODES, PREFILL_CHUNKS))
    rate = max(together.rate_rps, apart.rate_rps)
    if not rate:
        return None
    arm = adaptive(recipe, NUM_NODES)
    changes = [float(runs.figures(arm, rate, seed)["mix_changes"]) for seed in range(len(workloads))]
    return Cell(
        runs.slo,
        together,
        apart,
        rate,
        runs.goodput(together.candidate, rate),
        runs.goodput(apart.candidate, rate),
        runs.goodput(arm, rate),
        runs.capacity(arm, rate),
        mean(changes),
    )


def _tuned(runs: Runs, candidates: Sequence[Candidate]) -> Found:
    """The best of them; the search begins with what the closed forms think best."""
    ordered = by_forecast(candidates, runs.workloads[0], runs.slo)
    return runs.best(ordered, ordered[0].forecast_rps or START_RPS)


def ordered_slos() -> list[tuple[float, float]]:
    """All cells, the corners, edges and centre of the grid first: so far as a run gets, it is spread over the grid."""
    coarse = list(product(TTFTS[::2], TPOTS[::2]))
    return coarse + [slo for slo in product(TTFTS, TPOTS) if slo not in coarse]


def grid_of(
    steps: str,
    workloads: Sequence[Workload],
    slos: Sequence[tuple[float, float]],
    num_workers: int,
    on_cell: Callable[[list[Cell]], None],
) -> list[Cell]:
    """All cells in which a fixed arm holds a rate, so many at a time; `on_cell` hears of every cell."""
    cells = list[Cell]()
    with ProcessPoolExecutor(num_workers) as pool:
        for slo, cell in zip(slos, pool.map(partial(cell_of, steps, workloads), slos), strict=True):
            if cell is None:
                say(f"TTFT {slo[0]:g} s, TPOT {1000 * slo[1]:g} ms: neither fixed arm holds any rate")
                continue
            cells.append(cell)
            say(_sentence(cell))
            on_cell(cells)
    return cells


def figures_of(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Over the cells."""
    found: dict[str, Figure] = {"cells": len(cells)}
    for name in ("ratio", "capacity_ratio"):
        values = [float(getattr(cell, name)) for cell in cells]
        found |= {f"{name}_min": min(values), f"{name}_mean": mean(values), f"{name}_max": max(values)}
    found["cells_better_together"] = sum(cell.together.rate_rps >= cell.apart.rate_rps for cell in cells)
    return found


def _sentence(cell: Cell) -> str:
    return (
        f"TTFT {cell.slo.ttft_s:g} s, TPOT {1000 * cell.slo.tpot_s:g} ms: {cell.together.candidate} holds "
        f"{cell.together.rate_rps:.2f} req/s, {cell.apart.candidate} {cell.apart.rate_rps:.2f}, adaptive "
        f"{cell.adaptive_rps:.2f}; at {cell.rate_rps:.2f} {cell.goodput_together:.2f}, {cell.goodput_apart:.2f}, "
        f"{cell.goodput_adaptive:.2f}: {cell.ratio:.3f}; by capacity {cell.capacity_ratio:.3f}"
    )


def _sample(cell: Cell) -> Sample:
    return {
        "ttft_slo_s": cell.slo.ttft_s,
        "tpot_slo_s": cell.slo.tpot_s,
        "aggregated": str(cell.together.candidate),
        "aggregated_rps": cell.together.rate_rps,
        "disaggregated": str(cell.apart.candidate),
        "disaggregated_rps": cell.apart.rate_rps,
        "adaptive_rps": cell.adaptive_rps,
        "at_rps": cell.rate_rps,
        "aggregated_goodput_rps": cell.goodput_together,
        "disaggregated_goodput_rps": cell.goodput_apart,
        "adaptive_goodput_rps": cell.goodput_adaptive,
        "adaptive_mix_changes": cell.mix_changes,
        "ratio": cell.ratio,
        "capacity_ratio": cell.capacity_ratio,
    }


def _save_plot(path: str, cells: Sequence[Cell]) -> None:
    plt = pyplot()
    ttfts, tpots = sorted({c.slo.ttft_s for c in cells}), sorted({c.slo.tpot_s for c in cells})
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    named = (
        ("ratio", "adaptive over the better fixed arm,\ngoodput at the same rate"),
        ("capacity_ratio", "adaptive over the better fixed arm,\nhighest rate with 90 % in time"),
    )
    for axes, (name, title) in zip(panels, named, strict=True):
        values = [[float("nan")] * len(ttfts) for _ in tpots]
        for cell in cells:
            row, column = tpots.index(cell.slo.tpot_s), ttfts.index(cell.slo.ttft_s)
            values[row][column] = getattr(cell, name)
            letter = "a" if cell.together.rate_rps >= cell.apart.rate_rps else "d"
            colour = "white" if values[row][column] < 0.65 else "black"
            axes.text(column, row, f"{values[row][column]:.2f} {letter}", ha="center", va="center", color=colour)
        image = axes.imshow(values, origin="lower", aspect="auto", cmap="PiYG", vmin=0.6, vmax=1.4)
        axes.set_xticks(range(len(ttfts)), [f"{value:g}" for value in ttfts])
        axes.set_yticks(range(len(tpots)), [f"{1000 * value:g}" for value in tpots])
        axes.set(xlabel="TTFT, s", ylabel="TPOT, ms", title=title)
        figure.colorbar(image, ax=axes)
    figure.suptitle("Simulated. Better fixed arm: a aggregated, d disaggregated", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the grid, print, write."""
    args = arguments(__doc__, _add_flags)
    number = args.requests or (150 if args.quick else 200)
    workloads = [workload_of([f"{WORKLOAD},requests={number}"], seed).workload for seed in range(args.seeds)]
    slos = list(product(TTFTS[1::2], TPOTS[1::2])) if args.quick else ordered_slos()
    grid_of(args.steps, workloads, slos, args.workers, lambda cells: _write(args, cells))


def _write(args: argparse.Namespace, cells: Sequence[Cell]) -> None:
    """After every cell, so that a run that is ended early leaves what it finished."""
    if not cells:
        return
    figures = figures_of(cells)
    print("; ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
    if args.json:
        write_report(args.json, "python -m experiments.02-no-regret.run", figures, [_sample(cell) for cell in cells])
    if args.plot:
        _save_plot(args.plot, cells)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", choices=("roofline", "serial", "measured"), default="roofline", help="of the nodes")
    parser.add_argument("--requests", type=int, default=None, metavar="N", help="of each run (default: 200)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cells at a time")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="workloads to take the mean over")


if __name__ == "__main__":
    main()
