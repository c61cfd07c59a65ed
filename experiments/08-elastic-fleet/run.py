"""An elastic fleet against static ones: goodput per average node on a day of load and on a trace. Simulated."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from pathlib import Path

from cluster.fleet_plan import Arm, Recipe
from cluster.plotting import pyplot
from cluster.report_file import Figure, Sample, write_report
from cluster.simulation import Elastic, Simulated, simulate
from cluster.workload.items import Workload
from cluster.workload.spec import workload_of
from cluster.workload.traces import read_trace
from core.decisions import DecisionKind
from core.request import SLO
from experiments.arms import ADAPTIVE_CHUNK, arguments, recipe_for, roofline, say, skip
from scheduler.capacity import CapacityConfig

SHAPE, TP = "llama-3-70b", 2
MAX_NODES = 16
"""32 GPUs, as the static fleet of the published replay has them."""

MIN_NODES, FIRST_NODES, START_S = 2, 4, 30.0
DOWN_S = (300.0, 60.0)
"""How long fewer nodes must have been enough before some go: the default, and a fifth of it."""

ENOUGH = 0.99
"""Of the goodput of the largest fleet: the smallest static fleet that has it is the one of peak size."""

LENGTHS = "lengths,in=lognormal:2000:0.6:16000,out=lognormal:300:0.6:2000"
DAY = ((0.0, 1.0), (0.3, 1.0), (0.45, 8.0), (0.6, 8.0), (0.75, 1.0), (1.0, 1.0))
"""Share of the time, and the rate there in units of the night's: straight lines between. The peak is 2.6 times the
mean."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A workload and what is promised. `is_warped`: its arrivals are laid over `DAY`, their order and lengths kept.
    Time runs `speed` times as fast."""

    name: str
    slo: SLO
    needs_trace: bool
    is_warped: bool
    speed: float = 1.0


ASKED = (
    Asked("day", SLO(2.0, 0.050), needs_trace=False, is_warped=True),
    Asked("mooncake", SLO(10.0, 0.050), needs_trace=True, is_warped=False),
    Asked("mooncake_day", SLO(10.0, 0.050), needs_trace=True, is_warped=True, speed=0.5),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fleet over the whole workload. `nodes`: the average, those that start or drain among them."""

    fleet: str
    goodput_rps: float
    attainment: float
    nodes: float
    num_lost: int
    num_failed: int
    num_refused: int
    num_changes: int
    sizes: tuple[tuple[float, int], ...]

    @property
    def per_node(self) -> float:
        """Goodput over the average fleet."""
        return self.goodput_rps / self.nodes


@dataclass(frozen=True, slots=True)
class Found:
    """One workload: the largest static fleet, the static one of peak size, and the elastic ones by `down_s`."""

    asked: Asked
    workload: Workload
    largest: Outcome
    static: Outcome
    elastic: tuple[tuple[float, Outcome], ...]


def on_a_day(workload: Workload) -> Workload:
    """The same requests with arrivals laid over `DAY`: their share of the time becomes a share of the day's load."""
    end_s, items, areas = workload.duration_s, [], _areas()
    for item in workload.items:
        items.append(replace(item, at_s=end_s * _time_of(item.at_s / end_s * areas[-1], areas)))
    return replace(workload, name=f"{workload.name} on a day", items=tuple(items))


def _areas() -> list[float]:
    """Load up to each corner of the day."""
    areas = [0.0]
    for (start, low), (end, high) in pairwise(DAY):
        areas.append(areas[-1] + (end - start) * (low + high) / 2)
    return areas


def _time_of(area: float, areas: Sequence[float]) -> float:
    """The share of the day by which so much load has come: the root of a square in each straight piece."""
    for place in range(len(DAY) - 1):
        (start, low), (end, high) = DAY[place], DAY[place + 1]
        if area <= areas[place + 1] or place == len(DAY) - 2:
            rest, slope = area - areas[place], (high - low) / (end - start)
            if not slope:
                return min(1.0, start + rest / low)
            return min(1.0, start + (sqrt(max(0.0, low * low + 2 * slope * rest)) - low) / slope)
    raise AssertionError("the last piece takes whatever is left")


def outcome_of(recipe: Recipe, num: int, asked: Asked, workload: Workload, elastic: Elastic | None = None) -> Outcome:
    """One simulation. The controller chooses mixes in all fleets; here it also chooses how many nodes, or not."""
    run = simulate(recipe, Arm(0, 0, num, adapts=True), workload, asked.slo, 0, elastic)
    figures = run.figures()
    found = Outcome(
        f"elastic, down after {elastic.capacity.down_s:g} s" if elastic else f"static, {num} nodes",
        float(figures["goodput_rps"]),
        float(figures["attainment"]),
        run.load.num_nodes,
        run.load.num_lost,
        int(figures["failed"]) + int(figures["expired"]),
        int(figures["refused"]),
        _num_changes(run),
        run.fleet.sizes,
    )
    say(
        f"{asked.name}, {found.fleet}: {found.goodput_rps:.3f} req/s in time ({found.attainment:.1%}), "
        f"{found.nodes:.2f} nodes, {found.per_node:.3f} per node; lost {found.num_lost}, "
        f"capacity changes {found.num_changes}"
    )
    return found


def _num_changes(run: Simulated) -> int:
    return sum(each.kind is DecisionKind.CAPACITY for each in run.fleet.decisions)


def found_of(asked: Asked, workload: Workload) -> Found:
    """The largest fleet, the smallest that is as good, then the elastic ones."""
    recipe = replace(recipe_for(roofline("H200", SHAPE, TP), workload), chunk=ADAPTIVE_CHUNK)
    largest = outcome_of(recipe, MAX_NODES, asked, workload)
    low, high, static = MIN_NODES, MAX_NODES, largest
    while low < high:
        num = (low + high) // 2
        tried = outcome_of(recipe, num, asked, workload)
        if tried.goodput_rps >= ENOUGH * largest.goodput_rps:
            high, static = num, tried
        else:
            low = num + 1
    elastic = list[tuple[float, Outcome]]()
    for down_s in DOWN_S:
        capacity = CapacityConfig(min_nodes=MIN_NODES, max_nodes=MAX_NODES, down_s=down_s)
        found = outcome_of(recipe, MAX_NODES, asked, workload, Elastic(capacity, FIRST_NODES, START_S))
        elastic.append((down_s, found))
    return Found(asked, workload, largest, static, tuple(elastic))


def figures_of(all_found: Sequence[Found]) -> dict[str, Figure]:
    """By workload and, for elastic fleets, by how long they wait before nodes go."""
    figures = dict[str, Figure]()
    for found in all_found:
        name = found.asked.name
        figures |= {
            f"static_nodes_{name}": found.static.nodes,
            f"static_goodput_rps_{name}": found.static.goodput_rps,
            f"static_attainment_{name}": found.static.attainment,
        }
        for down_s, elastic in found.elastic:
            of = f"{name}_down_{down_s:g}_s"
            figures |= {
                f"elastic_nodes_{of}": elastic.nodes,
                f"elastic_goodput_rps_{of}": elastic.goodput_rps,
                f"kept_goodput_{of}": elastic.goodput_rps / found.static.goodput_rps,
                f"goodput_per_node_over_static_{of}": elastic.per_node / found.static.per_node,
                f"goodput_per_node_over_{MAX_NODES}_nodes_{of}": elastic.per_node / found.largest.per_node,
                f"capacity_changes_{of}": elastic.num_changes,
                f"lost_{of}": elastic.num_lost,
                f"failed_{of}": elastic.num_failed,
            }
    return figures


def _samples(all_found: Sequence[Found]) -> list[Sample]:
    return [
        {
            "workload": found.asked.name,
            "requests": len(found.workload.items),
            "ttft_slo_s": found.asked.slo.ttft_s,
            "tpot_slo_s": found.asked.slo.tpot_s,
            "fleet": each.fleet,
            "goodput_rps": each.goodput_rps,
            "attainment": each.attainment,
            "nodes": each.nodes,
            "goodput_rps_per_node": each.per_node,
            "lost": each.num_lost,
            "failed": each.num_failed,
            "refused": each.num_refused,
            "capacity_changes": each.num_changes,
            "sizes": [list(size) for size in each.sizes] if each.num_changes else [],
        }
        for found in all_found
        for each in (found.largest, found.static, *(elastic for _, elastic in found.elastic))
    ]


def _save_plot(path: str, all_found: Sequence[Found]) -> None:
    plt = pyplot()
    figure, rows = plt.subplots(
        len(all_found), 1, figsize=(9, 2.6 * len(all_found)), layout="constrained", squeeze=False
    )
    for (axes,), found in zip(rows, all_found, strict=True):
        end_s = found.workload.duration_s
        for place, (down_s, elastic) in enumerate(found.elastic):
            at_s, numbers = zip(*elastic.sizes, (end_s, elastic.sizes[-1][1]), strict=True)
            axes.step(at_s, numbers, where="post", color=f"C{place}", label=f"down after {down_s:g} s")
        axes.axhline(found.static.nodes, color="grey", linestyle="--", linewidth=0.8, label="static")
        axes.set(title=found.asked.name.replace("_", " "), ylabel="nodes", xlabel="s (simulated)", ylim=(0, None))
        beside, width_s = axes.twinx(), end_s / 60
        counts = [0] * 61
        for item in found.workload.items:
            counts[int(item.at_s / width_s)] += 1
        beside.plot([width_s * (i + 0.5) for i in range(60)], [n / width_s for n in counts[:60]], color="#bbbbbb")
        beside.set(ylabel="req/s (grey)", ylim=(0, None))
        axes.legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """All workloads, print, write."""
    args = arguments(__doc__, _add_flags)
    found = list[Found]()
    wanted = [each for each in ASKED if args.only in (None, each.name)]
    for asked in wanted[:1] if args.quick else wanted:
        workload = _workload(asked, args)
        if workload is None:
            continue
        found.append(found_of(asked, on_a_day(workload) if asked.is_warped else workload))
        if args.json:
            write_report(args.json, "python -m experiments.08-elastic-fleet.run", figures_of(found), _samples(found))
        if args.plot:
            _save_plot(args.plot, found)
    for name, value in figures_of(found).items():
        print(f"{name} {value}")


def _workload(asked: Asked, args: argparse.Namespace) -> Workload | None:
    if not asked.needs_trace:
        seconds, rate = (900, 3.0) if args.quick else (3600, 6.0)
        return workload_of([f"{LENGTHS},rate={rate},seconds={seconds}"], args.seed).workload
    if args.mooncake is None:
        skip(f"{asked.name}: no --mooncake")
        return None
    return read_trace(Path(args.mooncake)).workload.first(args.requests or 1_000_000).scaled(asked.speed)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mooncake", metavar="FILE", default=None, help="Mooncake's conversation trace")
    parser.add_argument("--only", choices=[each.name for each in ASKED], default=None, help="one of the workloads")
    parser.add_argument("--requests", type=int, default=None, metavar="N", help="of the trace, the first N")
    parser.add_argument("--seed", type=int, default=0, help="of the generated day")


if __name__ == "__main__":
    main()
