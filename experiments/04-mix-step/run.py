"""A step of the work from 8:1 to 1:8 (tokens in : out) and back, constant load, 1,000 changes by hand. Simulated."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from cluster.fleet_plan import fleet_of
from cluster.plotting import pyplot
from cluster.report_file import Figure, Sample, write_report
from cluster.simulated.fleet import FleetOverride, run_fleet
from cluster.simulation import Simulated, simulate
from cluster.workload.items import Workload
from cluster.workload.served import ServedRequest
from cluster.workload.spec import workload_of
from core.mix import mix_of
from core.request import SLO
from experiments.arms import adaptive, arguments, recipe_for, roofline, say

NUM_NODES = 4
STEADY = SLO(2.0, 0.015)
READING = "lengths,in=lognormal:4000:0.3,out=lognormal:500:0.3,rate=11"
WRITING = "lengths,in=lognormal:500:0.3,out=lognormal:4000:0.3,rate=4.5"
WINDOW_S = 5.0
TARGET = 0.95
ROLES = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True)
class Recovery:
    """After one step. Times since the step: the start of the first window of 5 s of which 95 % met their SLO, and the
    end of the last one of which fewer did."""

    name: str
    seed: int
    first_s: float
    last_s: float
    attainment: float
    num_mix_changes: int
    num_reversals: int
    num_lost: int


def stepped(before: str, after: str, seconds: float, seed: int) -> Workload:
    """One kind of work, then at once the other."""
    words = [f"{before},seconds={seconds:g}", f"{after},seconds={seconds:g},start={seconds:g}"]
    return workload_of(words, seed).workload


def recovery_of(name: str, run: Simulated, step_s: float, seed: int) -> Recovery:
    """By requests' times of arrival; the step is at `step_s`, and as long again follows."""
    starts = [place / 2 for place in range(int(2 * (step_s - WINDOW_S)) + 1)]
    windows = [(start, _attainment(run.load.records, step_s + start)) for start in starts]
    good = [start for start, share in windows if share >= TARGET]
    bad = [start + WINDOW_S for start, share in windows if share < TARGET]
    after = [each for each in run.load.records if each.item.at_s >= step_s]
    return Recovery(
        name,
        seed,
        good[0] if good else float("inf"),
        bad[-1] if bad else 0.0,
        sum(each.is_met for each in after) / len(after),
        run.load.num_mix_changes,
        run.load.num_reversals,
        run.load.num_lost,
    )


def _attainment(records: Sequence[ServedRequest], start_s: float) -> float:
    found = [each.is_met for each in records if start_s <= each.item.at_s < start_s + WINDOW_S]
    return sum(found) / len(found) if found else 1.0


def adaptive_run(workload: Workload, seed: int) -> Simulated:
    """Four nodes of Llama-3 8B on an H200 each, and the controller."""
    arm = adaptive(recipe_for(roofline("H200", "llama-3-8b"), workload), NUM_NODES)
    return simulate(arm.recipe, arm.arm, workload, STEADY, seed)


def lost_by_hand(num_changes: int, seed: int) -> tuple[int, int]:
    """Requests lost, and changes made, when an operator gives one node after the other another role every 0.2 s."""
    every_s = 0.2
    workload = workload_of([f"lengths,in=2000,out=200,rate=8,seconds={num_changes * every_s:g}"], seed).workload
    arm = adaptive(recipe_for(roofline("H200", "llama-3-8b"), workload), NUM_NODES)
    recipe = replace(arm.recipe, scheduler=replace(arm.recipe.scheduler, refuses_unattainable=False))
    fleet = fleet_of(recipe, arm.arm)
    names = [node.name for node in fleet.nodes[:-1]]  # the last one always does both
    overrides = [
        FleetOverride(every_s * (1 + place), ((names[place % 3], mix_of(ROLES[place // 3 % 3], 2048, 256)),))
        for place in range(num_changes)
    ]
    run = run_fleet(fleet, workload, STEADY, seed=seed, overrides=overrides)
    return run.num_lost + sum(number for _, number in run.errors), len(run.mix_changes)


def _save_plot(path: str, runs: Sequence[tuple[str, Simulated]], step_s: float) -> None:
    plt = pyplot()
    figure, rows = plt.subplots(len(runs), 1, sharex=True, figsize=(10, 5), layout="constrained", squeeze=False)
    starts = [place / 2 for place in range(int(2 * (2 * step_s - WINDOW_S)))]
    for (axes,), (name, run) in zip(rows, runs, strict=True):
        axes.plot(starts, [_attainment(run.load.records, start) for start in starts], color="#1b7837")
        for change in run.fleet.mix_changes:
            axes.axvline(change.at_s, color="grey", linewidth=0.8)
        axes.axvline(step_s, color="#c51b7d", linewidth=1.5)
        axes.axhline(TARGET, color="grey", linewidth=0.8, linestyle="--")
        axes.set(ylabel="in time", ylim=(0, 1.05), title=name.replace("_", " "))
    rows[-1][0].set_xlabel("start of a window of 5 s, s (red: the step; grey: mix changes); simulated")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def figures_of(found: Sequence[Recovery]) -> dict[str, Figure]:
    """Over the runs of each direction; times in seconds."""
    figures = dict[str, Figure]()
    for name in sorted({each.name for each in found}):
        these = [each for each in found if each.name == name]
        figures |= {
            f"{name}_recover_s_median": median(each.first_s for each in these),
            f"{name}_recover_s_worst": max(each.first_s for each in these),
            f"{name}_last_bad_window_s_worst": max(each.last_s for each in these),
            f"{name}_attainment_after_min": min(each.attainment for each in these),
            f"{name}_mix_changes_max": max(each.num_mix_changes for each in these),
            f"{name}_reversals_max": max(each.num_reversals for each in these),
        }
    return figures | {"lost": sum(each.num_lost for each in found)}


def main() -> None:
    """Run, print, write."""
    args = arguments(__doc__, _add_flags)
    seeds, seconds = range(1 if args.quick else args.seeds), 20.0 if args.quick else 60.0
    found, drawn = list[Recovery](), list[tuple[str, Simulated]]()
    for seed in seeds:
        for name, before, after in (("reading_to_writing", READING, WRITING), ("writing_to_reading", WRITING, READING)):
            run = adaptive_run(stepped(before, after, seconds, seed), seed)
            found.append(recovery_of(name, run, seconds, seed))
            say(str(found[-1]))
            if not seed:
                drawn.append((name, run))
    if args.plot:
        _save_plot(args.plot, drawn, seconds)
    constant = adaptive_run(workload_of([f"{READING},seconds={seconds * 10:g}"], 0).workload, 0)
    hand_lost, hand_changes = lost_by_hand(100 if args.quick else 1000, 0)
    figures = figures_of(found) | {
        "constant_seconds": seconds * 10,
        "constant_mix_changes": constant.load.num_mix_changes,
        "constant_reversals": constant.load.num_reversals,
        "by_hand_changes": hand_changes,
        "by_hand_lost_or_failed": hand_lost,
    }
    for name, value in figures.items():
        print(f"{name} {value}")
    if args.json:
        samples: list[Sample] = [{name: getattr(each, name) for name in Recovery.__slots__} for each in found]
        write_report(args.json, "python -m experiments.04-mix-step.run", figures, samples)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of the steps")


if __name__ == "__main__":
    main()
