"""Real goodput on two cores: the controller against two aggregated nodes and 1P + 1D, in three cells of SLO and load.

`--quick` shows in three minutes that it works; its figures mean nothing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from cluster.load_report import latencies
from cluster.plotting import pyplot
from cluster.report_file import Figure, Sample, write_report
from core.errors import ConfigError
from core.request import SLO
from engine.cost_table import CostTable
from experiments.arms import arguments, mean, say
from experiments.live import (
    ADAPTIVE,
    APART,
    LiveArm,
    LiveRun,
    Place,
    outcomes_of,
    profiled,
    run_live,
    together,
    two_cores,
    write_model,
)
from experiments.units import Units, workload

CHUNKS, ALL_CHUNKS = (32, 48, 128), (16, 32, 48, 64, 96, 128, 256, 512)
"""48 and a dozen rows are within the 64 lines up to which the engine has a kernel of its own."""

WARM_UP_S = 10.0
"""Requests that come before are served and not counted, in all arms: the controller begins without a plan."""

START_S = 10.0
"""What a fresh cluster takes from its start, and to its end, beside a run: for the estimate only."""

WINDOW_S = 5.0
"""Of the bootstrap: requests that come together are late together."""

QUIET = 0.1
"""Of the two cores: where others took more, figures are not to be trusted."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is promised and what comes, in the words of `Units`."""

    name: str
    ttft_prompts: float
    tpot_steps: float
    load: float


CELLS = (
    Cell("tight_tpot", 7.0, 3.0, 0.72),
    Cell("balanced", 7.0, 3.7, 0.86),
    Cell("tight_ttft", 3.5, 5.5, 0.86),
)


@dataclass(frozen=True, slots=True)
class Done:
    """One run. `met`: requests in time, by window of arrival, those of the warm-up left out."""

    cell: Cell
    arm: LiveArm
    seed: int
    slo: SLO
    rate_rps: float
    seconds: float
    met: tuple[int, ...]
    num_counted: int
    latencies: tuple[tuple[str, Figure], ...]
    run: LiveRun

    @property
    def goodput_rps(self) -> float:
        """In the counted time."""
        return sum(self.met) / self.seconds

    def share(self, seconds: float) -> float:
        """Of one core."""
        return seconds / self.run.sent.duration_s


def done(cell: Cell, arm: LiveArm, place: Place, units: Units, seconds: float, seed: int) -> Done:
    """One arm on a fresh cluster; the same requests for all arms, with tokens of its own for each run."""
    slo, rate = units.slo(cell.ttft_prompts, cell.tpot_steps), units.rate(cell.load)
    run = run_live(arm, place, workload(rate, WARM_UP_S + seconds, seed), slo, draw=seed)
    counted = [each for each in run.sent.records if each.item.at_s >= WARM_UP_S]
    met = [0] * max(1, int(seconds / WINDOW_S))
    for each in counted:
        met[min(len(met) - 1, int((each.item.at_s - WARM_UP_S) / WINDOW_S))] += each.is_met
    found = tuple(latencies(counted).items())
    return Done(cell, arm, seed, slo, rate, seconds, tuple(met), len(counted), found, run)


def interval(over: Sequence[int], under: Sequence[int]) -> tuple[float, float]:
    """90 % of the ratio of two sums under resampling of their windows, the same ones in both."""
    chance, ratios = Random(0), list[float]()
    for _ in range(2000):
        places = chance.choices(range(len(over)), k=len(over))
        ratios.append(sum(over[place] for place in places) / max(1, sum(under[place] for place in places)))
    ratios.sort()
    return ratios[100], ratios[1899]


def figures_of(runs: Sequence[Done]) -> dict[str, Figure]:
    """By cell; the better fixed arm is the one with the highest mean, chosen afterwards, which is in its favour."""
    figures = dict[str, Figure]()
    for cell in CELLS:
        these = [each for each in runs if each.cell == cell]
        arms = {each.arm.name: [run for run in these if run.arm == each.arm] for each in these}
        goodputs = {name: mean([run.goodput_rps for run in done]) for name, done in arms.items()}
        figures |= {f"goodput_rps_{_word(name)}_{cell.name}": value for name, value in goodputs.items()}
        fixed = {name: value for name, value in goodputs.items() if name != ADAPTIVE.name}
        if ADAPTIVE.name not in arms or not fixed:
            continue
        best = max(fixed, key=lambda name: fixed[name])
        low, high = interval(_met(arms[ADAPTIVE.name]), _met(arms[best]))
        name = f"goodput_rps_adaptive_over_better_fixed_{cell.name}"
        figures |= {
            f"better_fixed_{cell.name}": best,
            name: goodputs[ADAPTIVE.name] / fixed[best] if fixed[best] else float("inf"),
            f"{name}_low": low,
            f"{name}_high": high,
            f"ttft_slo_s_{cell.name}": these[0].slo.ttft_s,
            f"tpot_slo_s_{cell.name}": these[0].slo.tpot_s,
            f"rate_rps_{cell.name}": these[0].rate_rps,
        }
    return figures | {
        "client_cpu_share_max": max(each.share(each.run.spent.client_s) for each in runs),
        "head_cpu_share_max": max(each.share(each.run.spent.head_s) for each in runs),
        "others_cpu_share_max": max(each.share(each.run.spent.others_s) for each in runs),
        "node_deaths": sum(each.run.num_node_deaths for each in runs),
        "client_late_s_max": max(max(each.run.sent.late_s) for each in runs),
    }


def _met(runs: Sequence[Done]) -> list[int]:
    """Windows of all seeds, one after the other, in the order of the seeds."""
    return [number for each in sorted(runs, key=lambda run: run.seed) for number in each.met]


def _word(name: str) -> str:
    return name.replace(" + ", "_").replace(" ", "_").lower()


def _sample(each: Done) -> Sample:
    spent = each.run.spent
    return {
        "cell": each.cell.name,
        "arm": each.arm.name,
        "seed": each.seed,
        "rate_rps": each.rate_rps,
        "requests": each.num_counted,
        "met": list(each.met),
        "goodput_rps": each.goodput_rps,
        **dict(each.latencies),
        "node_deaths": each.run.num_node_deaths,
        "outcomes": outcomes_of(each.run),
        "mix_changes_at_s": [at_s for at_s, _ in each.run.watched.changes],
        "node_cpu_shares": {name: each.share(seconds) for name, seconds in spent.nodes},
        "head_cpu_share": each.share(spent.head_s),
        "client_cpu_share": each.share(spent.client_s),
        "others_cpu_share": each.share(spent.others_s),
    }


def _save_plot(path: str, runs: Sequence[Done]) -> None:
    plt = pyplot()
    cells = [cell for cell in CELLS if any(each.cell == cell for each in runs)]
    figure, panels = plt.subplots(1, len(cells), figsize=(4 * len(cells), 3.5), layout="constrained", squeeze=False)
    for axes, cell in zip(panels[0], cells, strict=True):
        these = [each for each in runs if each.cell == cell]
        names = list(dict.fromkeys(each.arm.name for each in these))
        values = [mean([each.goodput_rps for each in these if each.arm.name == name]) for name in names]
        colours = ["#1b7837" if name == ADAPTIVE.name else "#9970ab" for name in names]
        axes.bar(names, values, color=colours)
        axes.axhline(these[0].rate_rps, color="grey", linewidth=0.8, linestyle="--")
        slo = f"TTFT {these[0].slo.ttft_s:g} s, TPOT {1000 * these[0].slo.tpot_s:g} ms"
        axes.set(title=f"{cell.name}\n{slo}", ylabel="goodput, req/s (dashed: what came)")
        axes.tick_params(axis="x", rotation=60)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Profile, run all cells and arms, print, write."""
    args = arguments(__doc__, _add_flags)
    if args.minutes <= 0 or args.seeds < 1:
        raise ConfigError(["--minutes must be above 0 and --seeds at least 1"])
    seconds, seeds = (20.0, 1) if args.quick else (60 * args.minutes, args.seeds)
    arms = [*map(together, CHUNKS[1:2] if args.quick else ALL_CHUNKS if args.all_chunks else CHUNKS), APART, ADAPTIVE]
    runs = [(seed, cell) for seed in range(seeds) for cell in (CELLS[:1] if args.quick else CELLS)]
    estimate_s = 60 + len(runs) * len(arms) * (seconds + WARM_UP_S + START_S)
    say(f"{len(runs) * len(arms)} runs of {seconds:g} s: about {estimate_s / 60:.0f} minutes")
    found = list[Done]()
    with TemporaryDirectory() as folder:
        place = _prepared(Path(folder), args.table)
        units = Units.of(CostTable.read(place.table))
        prompt_ms, step_ms = 1000 * units.prompt_s, 1000 * units.step_s
        say(f"a prompt {prompt_ms:.0f} ms, a step {step_ms:.1f} ms, a node {units.rate_rps:.2f} req/s")
        for number, (seed, cell) in enumerate(runs):
            for arm in arms if number % 2 == 0 else reversed(arms):
                found.append(done(cell, arm, place, units, seconds, seed))
                say(_sentence(found[-1]))
            _write(args, found)
    for name, value in figures_of(found).items():
        print(f"{name} {value}")


def _prepared(folder: Path, table: str | None) -> Place:
    """The model, and its cost table: measured on both cores at once, as the nodes will run."""
    model = write_model(folder / "random-39m")
    place = Place(model, Path(table) if table else folder / "costs-0.json", folder / "serve.log")
    if table is None:
        say("profiling both cores")
        outputs = [folder / f"costs-{number}.json" for number in range(2)]
        processes = [profiled(model, output, core) for output, core in zip(outputs, two_cores(), strict=True)]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            raise RuntimeError("penstock profile failed")
    return place


def _sentence(each: Done) -> str:
    found = dict(each.latencies)
    late = f"TTFT p90 {found.get('ttft_s_p90', 0):.2f} s, TPOT p90 {1000 * float(found.get('tpot_s_p90', 0)):.1f} ms"
    spent, noise = each.run.spent, ""
    if each.share(spent.others_s) > QUIET:
        noise = f"; NOT QUIET: others took {each.share(spent.others_s):.0%} of a core"
    if each.run.num_node_deaths:
        noise += f"; {each.run.num_node_deaths} NODES DIED"
    return (
        f"{each.cell.name} (TTFT {each.slo.ttft_s:g} s, TPOT {1000 * each.slo.tpot_s:g} ms, {each.rate_rps:g} req/s), "
        f"seed {each.seed}, {each.arm.name}: {sum(each.met)} of {each.num_counted} in time, {late}, "
        f"{len(each.run.watched.changes)} mix changes; client {each.share(spent.client_s):.1%}, head "
        f"{each.share(spent.head_s):.1%} of a core{noise}"
    )


def _write(args: argparse.Namespace, found: Sequence[Done]) -> None:
    """After every cell, so that a run that is ended early leaves what it finished."""
    if args.json:
        command = "python -m experiments.06-live-goodput.run"
        write_report(args.json, command, figures_of(found), [_sample(each) for each in found])
    if args.plot:
        _save_plot(args.plot, found)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=0.65, metavar="M", help="counted, of each arm in each cell")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="workloads of each cell")
    parser.add_argument("--all-chunks", action="store_true", help=f"aggregated with chunks of {ALL_CHUNKS}")
    parser.add_argument("--table", metavar="FILE", default=None, help="a cost table of this model, not measured again")


if __name__ == "__main__":
    main()
