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
    """One cell: what is promised, the rate that the better fixed arm just held, and its goodput at it, in req/s."""

    steps: str
    requests: int
    slo: SLO
    rate_rps: float
    fixed_rps: float
    before_rps: float


@dataclass(frozen=True, slots=True)
class Again:
    """What the controller serves there now."""

    task: Task
    goodput_rps: float
    mix_changes: int

    @property
    def ratio(self) -> float:
        """Over the better fixed arm."""
        return self.goodput_rps / self.task.fixed_rps


def again(task: Task) -> Again:
    """One simulation."""
    workload = workload_of([f"{WORKLOAD},requests={task.requests}"], 0).workload
    runs = Runs([workload], task.slo, warm_up_s=WARM_UP_S)
    figures = runs.figures(adaptive(recipe_for(kind_of(task.steps), workload), NUM_NODES), task.rate_rps)
    return Again(task, float(figures["goodput_rps"]), int(figures["mix_changes"]))


def tasks_of(path: Path, steps: str, requests: int) -> list[Task]:
    """The cells of a result file of `run`, in its order."""
    found = []
    for sample in json.loads(path.read_text())["samples"]:
        fixed = max(sample["aggregated_goodput_rps"], sample["disaggregated_goodput_rps"])
        slo = SLO(sample["ttft_slo_s"], sample["tpot_slo_s"])
        found.append(Task(steps, requests, slo, sample["at_rps"], fixed, sample["adaptive_goodput_rps"]))
    return found


def figures_of(found: list[Again]) -> dict[str, Figure]:
    """Over the cells; `before_…`: of the file."""
    figures: dict[str, Figure] = {"cells": len(found)}
    now, before = [each.ratio for each in found], [each.task.before_rps / each.task.fixed_rps for each in found]
    for name, values in (("ratio", now), ("before_ratio", before)):
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
        "before_ratio": each.task.before_rps / each.task.fixed_rps,
    }


def main() -> None:
    """All cells, print, write after each."""
    args = arguments(__doc__, _add_flags)
    tasks = tasks_of(Path(args.file), args.steps, args.requests)
    found = list[Again]()
    with ProcessPoolExecutor(args.workers) as pool:
        for each in pool.map(again, tasks[:1] if args.quick else tasks):
            found.append(each)
            task = each.task
            say(
                f"TTFT {task.slo.ttft_s:g} s, TPOT {1000 * task.slo.tpot_s:g} ms at {task.rate_rps:.2f} req/s: "
                f"{each.goodput_rps:.2f} of {task.fixed_rps:.2f}: {each.ratio:.3f}, {each.mix_changes} changes"
            )
            if args.json:
                command = "python -m experiments.02-no-regret.again"
                write_report(args.json, command, figures_of(found), [_sample(done) for done in found])
    for name, value in figures_of(found).items():
        print(f"{name} {value}")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", required=True, help="what `run --json` wrote")
    parser.add_argument("--steps", choices=("roofline", "serial", "measured"), default="roofline", help="of that run")
    parser.add_argument("--requests", type=int, default=250, metavar="N", help="of each run, as there")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cells at a time")


if __name__ == "__main__":
    main()
