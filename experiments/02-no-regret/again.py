"""The controller once more, in the cells of an earlier run of the grid: its fixed arms and rates stand. Simulated.

Fixed arms do not depend on the controller, so where only that has changed they need not be tuned again.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.report_file import Figure, Sample, write_report
from cluster.workload.spec import workload_of
from core.request import SLO
from experiments.arms import Runs, adaptive, arguments, mean, recipe_for, say

from .run import NUM_NODES, WARM_UP_S, WORKLOAD, kind_of


@dataclass(frozen=True, slots=True)
class Task:
    """One cell: what is promised, the rate that the better fixed arm just held, and its goodput at it, in req/s.

    `by_rate`: the highest rate that the controller holds is searched as well.
    """

    steps: str
    requests: int
    slo: SLO
    rate_rps: float
    fixed_rps: float
    before_rps: float
    by_rate: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """What the controller serves there now."""

    task: Task
    goodput_rps: float
    mix_changes: int
    held_rps: float | None

    @property
    def ratio(self) -> float:
        """Over the better fixed arm."""
        return self.goodput_rps / self.task.fixed_rps

    @property
    def capacity_ratio(self) -> float | None:
        """The highest rate, over that of the better fixed arm."""
        return None if self.held_rps is None else self.held_rps / self.task.rate_rps


def again(task: Task) -> Again:
    """One simulation, or several for the rate."""
    workload = workload_of([f"{WORKLOAD},requests={task.requests}"], 0).workload
    runs = Runs([workload], task.slo, warm_up_s=WARM_UP_S)
    arm = adaptive(recipe_for(kind_of(task.steps), workload), NUM_NODES)
    figures = runs.figures(arm, task.rate_rps)
    held_rps = runs.capacity(arm, task.rate_rps) if task.by_rate else None
    return Again(task, float(figures["goodput_rps"]), int(figures["mix_changes"]), held_rps)


def tasks_of(path: Path, steps: str, requests: int, *, by_rate: bool = False) -> list[Task]:
    """The cells of a result file of `run`, in its order."""
    found = []
    for sample in json.loads(path.read_text())["samples"]:
        fixed = max(sample["aggregated_goodput_rps"], sample["disaggregated_goodput_rps"])
        slo = SLO(sample["ttft_slo_s"], sample["tpot_slo_s"])
        found.append(Task(steps, requests, slo, sample["at_rps"], fixed, sample["adaptive_goodput_rps"], by_rate))
    return found


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
        "better_fixed_goodput_rps": each.task.fixed_rps,
        "adaptive_goodput_rps": each.goodput_rps,
        "adaptive_mix_changes": each.mix_changes,
        "ratio": each.ratio,
        "adaptive_rps": each.held_rps,
        "capacity_ratio": each.capacity_ratio,
        "before_ratio": each.task.before_rps / each.task.fixed_rps,
    }


def main() -> None:
    """All cells, print, write after each."""
    args = arguments(__doc__, _add_flags)
    tasks = tasks_of(Path(args.file), args.steps, args.requests, by_rate=args.by_rate)
    found = list[Again]()
    with ProcessPoolExecutor(args.workers) as pool:
        for each in pool.map(again, tasks[:1] if args.quick else tasks):
            found.append(each)
            task = each.task
            say(
                f"TTFT {task.slo.ttft_s:g} s, TPOT {1000 * task.slo.tpot_s:g} ms at {task.rate_rps:.2f} req/s: "
                f"{each.goodput_rps:.2f} of {task.fixed_rps:.2f}: {each.ratio:.3f}, {each.mix_changes} changes"
                + (f"; by rate {each.capacity_ratio:.3f}" if each.capacity_ratio is not None else "")
            )
            if args.json:
                command = "python -m experiments.02-no-regret.again"
                write_report(args.json, command, figures_of(found), [_sample(done) for done in found])
    for name, value in figures_of(found).items():
        print(f"{name} {value}")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--by-rate", action="store_true", help="also search the highest rate that it holds")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which cells, and how."""
    parser.add_argument("--file", required=True, help="what `run --json` wrote")
    parser.add_argument("--steps", choices=("roofline", "serial", "measured"), default="roofline", help="of that run")
    parser.add_argument("--requests", type=int, default=250, metavar="N", help="of each run, as there")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cells at a time")


if __name__ == "__main__":
    main()
