"""The simulator against live nodes whose steps last what a table says: what deciding and messages alone make of it.

Needs no quiet machine: such nodes wait, and hardly compute.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.cost_sources import NodeKind
from cluster.fleet_plan import Arm
from cluster.simulated.shared_links import FleetLinks
from cluster.simulated.truth_hosted import HostedTruth
from cluster.simulated.truth_table import TableTruth
from cluster.workload.items import Workload
from core.errors import ConfigError
from core.request import SLO
from engine.cost_belief import node_costs
from engine.cost_table import CostTable
from engine.model_info import LoadFormat, model_digest, read_model_info
from experiments.arms import arguments, say
from experiments.live import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    TINY,
    LiveArm,
    Place,
    outcomes_of,
    profiled,
    run_live,
    two_cores,
    write_model,
)
from experiments.units import Units

from .compare import (
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

DUMMY = LoadFormat.DUMMY
PACED = "paced"
PACE = 4.0
"""Paced steps last so many times as long as measured ones, and so does all else: a millisecond that the machine is late
is then a quarter of it."""


def compared_paced(layout: LiveArm, arm: Arm, place: Place, workload: Workload, slo: SLO, seed: int) -> Compared:
    """Live nodes whose steps last what the table says, and the simulation of just these."""
    run = run_live(layout, place, workload, slo, draw=seed)
    table = CostTable.read(place.table)
    layout_of_kv = read_model_info(place.folder, DUMMY).kv_layout(BLOCK_SIZE, "float32")
    truth = HostedTruth(TableTruth(table), per_step_s=0.0, told=node_costs(table))
    kind = NodeKind("paced", truth, layout_of_kv, NUM_BLOCKS, num_gpus=1)
    told = simulated(kind, FleetLinks(1.0).message_s, arm, layout.chunk, workload, slo)
    live = list(run.sent.records)
    others = run.spent.others_s / run.sent.duration_s
    return Compared(
        layout=layout.name,
        rate_rps=workload.rate_rps,
        live=run_figures(live, workload),
        simulated={PACED: run_figures(told.load.records, workload)},
        live_stages=mean_stages(live),
        simulated_stages=mean_stages(told.load.records),
        live_busy={},
        simulated_busy={},
        others_cpu_share=others,
        num_node_deaths=run.num_node_deaths,
        live_outcomes=outcomes_of(run),
    )


def paced_place(folder: Path, measured: Path) -> Place:
    """A tiny model, and the measured table as one of this model that is `PACE` times as slow."""
    model, table = write_model(folder / "tiny", TINY), CostTable.read(measured)
    facts = replace(table.facts, model="tiny", digest=model_digest(model, DUMMY))
    slow = [
        [replace(each, seconds=tuple(PACE * s for s in each.seconds)) for each in of]
        for of in (table.steps, table.checks)
    ]
    CostTable.of(facts, slow[0], table.copies, slow[1]).write(folder / "paced.json")
    return Place(model, folder / "paced.json", folder / "paced.log", is_paced=True)


def main() -> None:
    """Measure a table where none is given, run, simulate, print, write."""
    args = arguments(__doc__, _add_flags)
    if args.seconds <= 0:
        raise ConfigError(["--seconds must be above 0"])
    loads = LOADS[-1:] if args.quick else LOADS
    seconds = PACE * (10 if args.quick else args.seconds)
    say(f"about {(60 + len(loads) * len(LAYOUTS) * (seconds + 25)) / 60:.0f} minutes")
    with TemporaryDirectory() as name:
        folder = Path(name)
        place = paced_place(folder, Path(args.table) if args.table else _profiled(folder))
        units = Units.of(CostTable.read(place.table))
        found = compare_all(
            loads,
            seconds,
            args.seed,
            units,
            lambda layout, arm, workload, slo: compared_paced(layout, arm, place, workload, slo, args.seed),
        )
    tell("paced", units_figures(units) | error_figures(found, PACED) | disturbance_figures(found), found, args.json)


def _profiled(folder: Path) -> Path:
    say("profiling one core")
    output = folder / "measured.json"
    if profiled(write_model(folder / "random-39m"), output, two_cores()[0]).wait():
        raise RuntimeError("penstock profile failed")
    return output


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=40.0, metavar="S", help=f"of each run, which then lasts {PACE:g} times as long"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the traces")
    parser.add_argument("--table", metavar="FILE", default=None, help="a cost table of the experiments' model")


if __name__ == "__main__":
    main()
