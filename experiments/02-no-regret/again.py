"""Tuned arms of an earlier run of the grid and the controller once more: today's code, or other requests. Simulated.

Chunks, ratios and rates stand: they need not be tuned again where only the controller has changed, or for a longer run.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.report_file import Figure, Sample, write_report
from cluster.workload.spec import workload_of
from core.request import SLO
from experiments.arms import Runs, adaptive, aggregated, arguments, disaggregated, mean, recipe_for, say

from .run import CHUNKS, NUM_NODES, PREFILL_CHUNKS, WARM_UP_S, WORKLOAD, kind_of


@dataclass(frozen=True, slots=True)
class Task:
    """One cell: what is promised, the tuned arms' names, the rate that the better one just held, and its goodput and
    the controller's at it then, in req/s.

    `by_rate`: the highest rates that all three hold are searched as well.
    """

    steps: str
    requests: int
    seed: int
    slo: SLO
    arms: tuple[str, ...]
    rate_rps: float
    fixed_rps: float
    before_rps: float
    by_rate: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """What the better tuned arm and the controller serve there now; the highest rates that they hold, where asked."""

    task: Task
    fixed_rps: float
    goodput_rps: float
    mix_changes: int
    fixed_held_rps: float | None
    held_rps: float | None

    @property
    def ratio(self) -> float:
        """Over the better fixed arm."""
        return self.goodput_rps / self.fixed_rps

    @property
    def capacity_ratio(self) -> float | None:
        """The highest rate, over that of the better fixed arm."""
        return self.held_rps / self.fixed_held_rps if self.held_rps is not None and self.fixed_held_rps else None


def again(task: Task) -> Again:
    """Three simulations, or several more for the rates."""
    workload = workload_of([f"{WORKLOAD},requests={task.requests}"], task.seed).workload
    runs, rate = Runs([workload], task.slo, warm_up_s=WARM_UP_S), task.rate_rps
    recipe = recipe_for(kind_of(task.steps), workload)
    known = (*aggregated(recipe, NUM_NODES, CHUNKS), *disaggregated(recipe, NUM_NODES, PREFILL_CHUNKS))
    tuned = [each for each in known if str(each) in task.arms]
    arm = adaptive(recipe, NUM_NODES)
    figures = runs.figures(arm, rate)
    return Again(
        task,
        max(runs.goodput(each, rate) for each in tuned),
        float(figures["goodput_rps"]),
        int(figures["mix_changes"]),
        max(runs.capacity(each, rate) for each in tuned) if task.by_rate else None,
        runs.capacity(arm, rate) if task.by_rate else None,
    )


def tasks_of(path: Path, steps: str, requests: int, seed: int = 0, *, by_rate: bool = False) -> list[Task]:
    """The cells of a result file of `run`, in its order."""
    found = []
    for sample in json.loads(path.read_text())["samples"]:
        fixed = max(sample["aggregated_goodput_rps"], sample["disaggregated_goodput_rps"])
        slo = SLO(sample["ttft_slo_s"], sample["tpot_slo_s"])
        arms, before = (sample["aggregated"], sample["disaggregated"]), sample["adaptive_goodput_rps"]
        found.append(Task(steps, requests, seed, slo, arms, sample["at_rps"], fixed, before, by_rate))
    return found


def first(tasks: list[Task], args: argparse.Namespace) -> list[Task]:
    """As many as were asked for."""
    return tasks[: 1 if args.quick else args.cells]


def figures_of(found: list[Again]) -> dict[str, Figure]:
    """Over the cells; `before_…`: of the file."""
    figures: dict[str, Figure] = {"cells": len(found)}
    now, before = [each.ratio for each in found], [each.task.before_rps / each.task.fixed_rps for each in found]
    rates = [each.capacity_ratio for each in found if each.capacity_ratio is not None]
    named = [("ratio", now), ("before_ratio", before), *([("capacity_ratio", rates)] if rates else [])]
    for name, values in named:
        figures |= {f"{name}_min": min(values), f"{name}_mean": mean(values), f"{name}_max": max(values)}
    return figures


def _sample(each: Again) -> Sample:
    return {
        "ttft_slo_s": each.task.slo.ttft_s,
        "tpot_slo_s": each.task.slo.tpot_s,
        "at_rps": each.task.rate_rps,
        "better_fixed_goodput_rps": each.fixed_rps,
        "adaptive_goodput_rps": each.goodput_rps,
        "adaptive_mix_changes": each.mix_changes,
        "ratio": each.ratio,
        "better_fixed_rps": each.fixed_held_rps,
        "adaptive_rps": each.held_rps,
        "capacity_ratio": each.capacity_ratio,
        "before_ratio": each.task.before_rps / each.task.fixed_rps,
    }


def main() -> None:
    """All cells, print, write after each."""
    args = arguments(__doc__, _add_flags)
    tasks = tasks_of(Path(args.file), args.steps, args.requests, args.seed, by_rate=args.by_rate)
    found = list[Again]()
    with ProcessPoolExecutor(args.workers) as pool:
        for each in pool.map(again, first(tasks, args)):
            found.append(each)
            task = each.task
            say(
                f"TTFT {task.slo.ttft_s:g} s, TPOT {1000 * task.slo.tpot_s:g} ms at {task.rate_rps:.2f} req/s: "
                f"{each.goodput_rps:.2f} of {each.fixed_rps:.2f}: {each.ratio:.3f}, {each.mix_changes} changes"
                + (f"; by rate {each.capacity_ratio:.3f}" if each.capacity_ratio is not None else "")
            )
            if args.json:
                command = "python -m experiments.02-no-regret.again"
                write_report(args.json, command, figures_of(found), [_sample(done) for done in found])
    for name, value in figures_of(found).items():
        print(f"{name} {value}")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--by-rate", action="store_true", help="also search the highest rates that they hold")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the requests")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which cells, and how."""
    parser.add_argument("--file", required=True, help="what `run --json` wrote")
    parser.add_argument("--steps", choices=("roofline", "serial", "measured"), default="roofline", help="of that run")
    parser.add_argument("--requests", type=int, default=250, metavar="N", help="of each run")
    parser.add_argument("--cells", type=int, default=None, metavar="N", help="the first so many only (default: all)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cells at a time")


if __name__ == "__main__":
    main()
