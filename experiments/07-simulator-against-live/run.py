"""The simulator against a live cluster of two nodes on two cores: the same traces, measured costs, nothing fitted."""

import argparse
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from cluster.cost_sources import CostAsked, NodeKind, node_kind
from cluster.fleet_plan import Arm
from cluster.plotting import pyplot
from cluster.report_file import Figure
from cluster.simulated.shared_links import FleetLinks
from cluster.simulated.truth_hosted import HostedTruth
from cluster.workload.items import Workload
from core.errors import ConfigError
from core.request import SLO
from engine.cost_belief import node_costs
from engine.cost_table import CostTable
from experiments.arms import arguments, say
from experiments.live import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    LiveArm,
    Place,
    idle_times,
    outcomes_of,
    profiled,
    run_live,
    two_cores,
    write_model,
)
from experiments.units import Units

from .compare import (
    COMPARED,
    LAYOUTS,
    LOADS,
    Compared,
    compare_all,
    disturbance_figures,
    error_figures,
    mean_stages,
    run_figures,
    simulated,
    tell,
    units_figures,
)

MODELS = ("steps", "shell", "beside", "around")
"""What the simulation knows, each with all before it: an executor's steps; what the shell adds to them; steps beside a
busy neighbour; what scheduler, gateway and client take of the cores."""


@dataclass(frozen=True, slots=True)
class Shell:
    """What a live node adds to its executor's steps, measured with one request, and with eight, on an idle cluster; and
    what is taken of a processor around the nodes for each token."""

    step_s: float
    row_s: float
    message_s: float
    around_s: float

    def core_share(self, workload: Workload) -> float:
        """What a workload's tokens leave of each of two cores."""
        return 1 - self.around_s * workload.output_tokens / workload.arrivals_s / 2


@dataclass(frozen=True, slots=True)
class Tables:
    """Of one node: alone on the machine, and while the other core did the same."""

    alone: Path
    beside: Path

    def beside_ratio(self, prefills: bool) -> float:
        """How much longer steps of one kind take beside a neighbour, in the median."""
        alone, beside = CostTable.read(self.alone), CostTable.read(self.beside)
        pairs = zip(alone.steps, beside.steps, strict=True)
        return median(b.median_s / a.median_s for a, b in pairs if bool(a.prefill_tokens) == prefills)


def measured_tables(model: Path, folder: Path, quick: bool) -> Tables:
    """One core, then both at once."""
    extra, cores = ["--quick"] if quick else [], two_cores()
    alone, beside, other = folder / "alone.json", folder / "beside.json", folder / "other.json"
    say("profiling one core, then both at once")
    _wait(profiled(model, alone, cores[0], extra))
    pair = [profiled(model, beside, cores[0], extra), profiled(model, other, cores[1], extra)]
    for process in pair:
        _wait(process)
    return Tables(alone, beside)


def _wait(process: "subprocess.Popen[bytes]") -> None:
    if process.wait():
        raise RuntimeError("penstock profile failed")


def measured_shell(place: Place) -> Shell:
    """Times between tokens, and to the first one, of an idle cluster, less what the table says of the steps alone."""
    table = CostTable.read(place.table)
    one, eight = idle_times(place, num_rows=1), idle_times(place, num_rows=8)
    added = [found.gap_s - table.step_s(0, 0, rows, found.context) for found, rows in ((one, 1), (eight, 8))]
    row_s = max(0.0, (added[1] - added[0]) / 7)
    step_s = max(0.0, added[0] - row_s)
    first_s = one.first_s - table.step_s(one.prompt_tokens, 0, 0, 0) - step_s - row_s
    return Shell(step_s, row_s, max(0.0, first_s / 2), eight.around_s)


def kind_of(model: str, place: Place, tables: Tables, shell: Shell, workload: Workload) -> NodeKind:
    """A node as this simulation knows it; its scheduler is told what the live one was."""
    known = MODELS.index(model)
    asked = CostAsked(
        table=tables.alone,
        beside=tables.beside if known >= 2 else None,
        shape=str(place.folder),
        kv_dtype="float32",
        kv_tokens=NUM_BLOCKS * BLOCK_SIZE,
        block_size=BLOCK_SIZE,
    )
    kind, told = node_kind(asked, 1), node_costs(CostTable.read(tables.alone))
    added = (shell.step_s, shell.row_s) if known >= 1 else (0.0, 0.0)
    share = shell.core_share(workload) if known >= 3 else 1.0
    beside = HostedTruth(kind.beside, *added, share) if kind.beside else None
    return replace(kind, truth=HostedTruth(kind.truth, *added, share, told), beside=beside)


def compared(
    layout: LiveArm, arm: Arm, place: Place, workload: Workload, slo: SLO, tables: Tables, shell: Shell, seed: int
) -> Compared:
    """Live, then simulated with what is known step by step."""
    run = run_live(layout, place, workload, slo, draw=seed)
    live, found = list(run.sent.records), dict[str, dict[str, float]]()
    for model in MODELS:
        message_s = FleetLinks(1.0).message_s if model == MODELS[0] else shell.message_s
        told = simulated(kind_of(model, place, tables, shell, workload), message_s, arm, layout.chunk, workload, slo)
        found[model] = run_figures(told.load.records, workload)
    nodes = sorted(told.fleet.nodes, key=lambda node: node.name)  # as the live ones are
    busy_s = {node.name: node.prefill_busy_s + node.decode_busy_s for node in nodes}
    return Compared(
        layout=layout.name,
        rate_rps=workload.rate_rps,
        live=run_figures(live, workload),
        simulated=found,
        live_stages=mean_stages(live),
        simulated_stages=mean_stages(told.load.records),
        live_busy={name: seconds / run.sent.duration_s for name, seconds in run.spent.nodes},
        simulated_busy={name: seconds / told.load.duration_s for name, seconds in busy_s.items()},
        others_cpu_share=run.spent.others_s / run.sent.duration_s,
        num_node_deaths=run.num_node_deaths,
        live_outcomes=outcomes_of(run),
    )


def figures_of(found: Sequence[Compared], tables: Tables, shell: Shell) -> dict[str, Figure]:
    """What the simulation knows; then errors by how much of it."""
    figures: dict[str, Figure] = {
        "beside_prefill_ratio": tables.beside_ratio(prefills=True),
        "beside_decode_ratio": tables.beside_ratio(prefills=False),
        "shell_step_s": shell.step_s,
        "shell_row_s": shell.row_s,
        "shell_message_s": shell.message_s,
        "around_s_per_token": shell.around_s,
    }
    for model in MODELS:
        figures |= error_figures(found, model, f"_{model}")
    return figures | disturbance_figures(found)


def _save_plot(path: str, found: Sequence[Compared]) -> None:
    plt = pyplot()
    figure, panels = plt.subplots(1, len(COMPARED), figsize=(3 * len(COMPARED), 3), layout="constrained")
    for axes, name in zip(panels, COMPARED, strict=True):
        most = 1.1 * max(max(each.live[name], *(s[name] for s in each.simulated.values())) for each in found)
        axes.plot([0, most], [0, most], color="grey", linewidth=0.8)
        for place, model in enumerate(MODELS):
            measured, told = [each.live[name] for each in found], [each.simulated[model][name] for each in found]
            axes.scatter(measured, told, s=14, color=f"C{place}", label=model.replace("_", ", "))
        axes.set(title=name, xlabel="live", ylabel="simulated", xlim=(0, most), ylim=(0, most))
    panels[0].legend(fontsize=6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, run, simulate, print, write."""
    args = arguments(__doc__, _add_flags)
    if args.seconds <= 0:
        raise ConfigError(["--seconds must be above 0"])
    seconds = 20.0 if args.quick else args.seconds
    loads = LOADS[:1] if args.quick else LOADS
    say(f"about {(160 + len(loads) * len(LAYOUTS) * (seconds + 12)) / 60:.0f} minutes")
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "random-39m")
        tables = measured_tables(model, folder, args.quick)
        place = Place(model, tables.alone, folder / "serve.log")
        shell = measured_shell(place)
        ratios = tables.beside_ratio(prefills=True), tables.beside_ratio(prefills=False)
        say(f"{shell}; beside a neighbour prefill takes {ratios[0]:.2f} and decode {ratios[1]:.2f} times as long")
        units = Units.of(CostTable.read(tables.alone))
        found = compare_all(
            loads,
            seconds,
            args.seed,
            units,
            lambda layout, arm, workload, slo: compared(layout, arm, place, workload, slo, tables, shell, args.seed),
        )
        figures = units_figures(units) | figures_of(found, tables, shell)
    tell("run", figures, found, args.json)
    if args.plot:
        _save_plot(args.plot, found)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of each live run")
    parser.add_argument("--seed", type=int, default=1, help="of the traces")


if __name__ == "__main__":
    main()
