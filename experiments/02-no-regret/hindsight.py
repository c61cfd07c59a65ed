"""What the best fixed layout of any kind serves in each cell: a bound for what a controller can gain. Simulated.

The two arms of the grid are all nodes mixed, or none. Here some are: every division of the nodes into prefill, mixed
and decode, with each chunk, chosen afterwards.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.fleet_plan import Arm, Recipe
from cluster.report_file import Figure, Sample, write_report
from cluster.tune_plan import Candidate
from cluster.workload.spec import workload_of
from experiments.arms import Found, Runs, arguments, by_forecast, mean, recipe_for, say

from .again import Task, add_flags, first, tasks_of
from .run import NUM_NODES, PREFILL_CHUNKS, WARM_UP_S, WORKLOAD, kind_of

CHUNKS = (256, 1024, 4096)


@dataclass(frozen=True, slots=True)
class Between:
    """The best layout in which some nodes are mixed, and its goodput where the better arm just holds, in req/s."""

    task: Task
    found: Found
    goodput_rps: float

    @property
    def capacity_ratio(self) -> float:
        """The highest rate of any fixed layout, over that of the better of the two arms."""
        return max(1.0, self.found.rate_rps / self.task.rate_rps)

    @property
    def ratio(self) -> float:
        """The same by goodput at that rate."""
        return max(1.0, self.goodput_rps / self.task.fixed_rps)


def between(recipe: Recipe) -> list[Candidate]:
    """All divisions in which one to all but one of the nodes are mixed."""
    arms = [
        Arm(num_prefill, NUM_NODES - num_mixed - num_prefill, num_mixed)
        for num_mixed in range(1, NUM_NODES)
        for num_prefill in range(NUM_NODES - num_mixed + 1)
    ]
    split = replace(recipe, prefill_chunk=PREFILL_CHUNKS[0])
    return [Candidate(replace(split, chunk=chunk), arm) for chunk in CHUNKS for arm in arms]


def bound(task: Task) -> Between:
    """All of them in one cell."""
    workload = workload_of([f"{WORKLOAD},requests={task.requests}"], 0).workload
    runs = Runs([workload], task.slo, warm_up_s=WARM_UP_S)
    candidates = by_forecast(between(recipe_for(kind_of(task.steps), workload)), workload, task.slo)
    found = runs.best(candidates, task.rate_rps)
    return Between(task, found, max(runs.goodput(each, task.rate_rps) for each in candidates))


def figures_of(found: list[Between]) -> dict[str, Figure]:
    """Over the cells."""
    figures: dict[str, Figure] = {"cells": len(found)}
    for name in ("ratio", "capacity_ratio"):
        values = [float(getattr(each, name)) for each in found]
        figures |= {
            f"bound_{name}_min": min(values),
            f"bound_{name}_mean": mean(values),
            f"bound_{name}_max": max(values),
        }
    figures["cells_better_between"] = sum(each.capacity_ratio > 1.0 for each in found)
    return figures


def _sample(each: Between) -> Sample:
    return {
        "ttft_slo_s": each.task.slo.ttft_s,
        "tpot_slo_s": each.task.slo.tpot_s,
        "better_fixed_rps": each.task.rate_rps,
        "between": str(each.found.candidate),
        "between_rps": each.found.rate_rps,
        "between_goodput_rps": each.goodput_rps,
        "bound_ratio": each.ratio,
        "bound_capacity_ratio": each.capacity_ratio,
    }


def main() -> None:
    """All cells, print, write after each."""
    args = arguments(__doc__, add_flags)
    tasks = tasks_of(Path(args.file), args.steps, args.requests)
    found = list[Between]()
    with ProcessPoolExecutor(args.workers) as pool:
        for each in pool.map(bound, first(tasks, args)):
            found.append(each)
            say(
                f"TTFT {each.task.slo.ttft_s:g} s, TPOT {1000 * each.task.slo.tpot_s:g} ms: better arm "
                f"{each.task.rate_rps:.2f} req/s, {each.found.candidate} {each.found.rate_rps:.2f}: "
                f"{each.capacity_ratio:.3f}; goodput there {each.ratio:.3f}"
            )
            if args.json:
                command = "python -m experiments.02-no-regret.hindsight"
                write_report(args.json, command, figures_of(found), [_sample(done) for done in found])
    for name, value in figures_of(found).items():
        print(f"{name} {value}")


if __name__ == "__main__":
    main()
