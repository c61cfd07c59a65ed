"""What both parts of experiment 07 compare: a live run and simulations of it, by figures and by stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from cluster.cost_sources import NodeKind
from cluster.fleet_plan import Arm, Recipe
from cluster.load_report import STAGES, account_of, latencies
from cluster.report_file import Figure, Sample, write_report
from cluster.simulated.shared_links import FleetLinks
from cluster.simulation import Simulated, simulate
from cluster.workload.items import Workload
from cluster.workload.served import ServedRequest
from core.request import SLO
from experiments.arms import mean, say
from experiments.live import APART, LARGEST_CHUNK, MAX_NUM_SEQS, LiveArm, together
from experiments.units import Units, workload

LAYOUTS = ((together(64), Arm(0, 0, 2)), (APART, Arm(1, 1, 0)))
LOADS = (0.4, 0.6)
TTFT_PROMPTS, TPOT_STEPS = 10.0, 5.0
"""Loads and SLO in the words of `Units`: next to nothing is refused, so that all that is compared was served twice."""

CONTEXT = 2048
MEMORY_BYTES_PER_S = 5e9
"""Of a fetch from one process to another: copies on this class of machine. A whole prompt takes a millisecond."""

COMPARED = ("ttft_s_p50", "ttft_s_p90", "tpot_s_p50", "tpot_s_p90", "goodput_rps")


@dataclass(frozen=True, slots=True)
class Compared:
    """One layout at one rate: figures of the live run and of each simulation; of the last simulation also the stages of
    the ledger, on average, and how much of the time nodes were busy, beside what the live ones took of their cores."""

    layout: str
    rate_rps: float
    live: dict[str, float]
    simulated: dict[str, dict[str, float]]
    live_stages: dict[str, float]
    simulated_stages: dict[str, float]
    live_busy: dict[str, float]
    simulated_busy: dict[str, float]
    others_cpu_share: float
    num_node_deaths: int
    live_outcomes: dict[str, int]

    def error(self, model: str, name: str) -> float:
        """Of the simulation, as a share of what was measured; where that was nothing, none or endless."""
        told, measured = self.simulated[model][name], self.live[name]
        return told / measured - 1 if measured else float("inf") if told else 0.0


CompareOne = Callable[[LiveArm, Arm, Workload, SLO], Compared]
"""One layout under one trace, live and simulated."""


def compare_all(loads: Sequence[float], seconds: float, seed: int, units: Units, compare: CompareOne) -> list[Compared]:
    """Every layout under every load, for so many seconds. Each is said when it is over."""
    found, slo = list[Compared](), units.slo(TTFT_PROMPTS, TPOT_STEPS)
    say(f"a prompt {units.prompt_s:.3g} s, a step {units.step_s:.3g} s; TTFT {slo.ttft_s:g} s, TPOT {slo.tpot_s:g} s")
    for load in loads:
        requests = workload(units.rate(load), seconds, seed)
        for layout, arm in LAYOUTS:
            found.append(compare(layout, arm, requests, slo))
            say(sentence_of(found[-1]))
    return found


def units_figures(units: Units) -> dict[str, Figure]:
    """What the machine's units are, and the SLO in them."""
    slo = units.slo(TTFT_PROMPTS, TPOT_STEPS)
    told = {"prompt_s": units.prompt_s, "step_s": units.step_s, "node_rate_rps": units.rate_rps}
    return told | {"ttft_slo_s": slo.ttft_s, "tpot_slo_s": slo.tpot_s}


def error_figures(found: Sequence[Compared], model: str, ending: str = "") -> dict[str, Figure]:
    """Errors of one simulation over all layouts and rates; their names end in `ending`."""
    errors = [abs(each.error(model, name)) for each in found for name in COMPARED]
    figures: dict[str, Figure] = {f"error_median{ending}": median(errors), f"error_worst{ending}": max(errors)}
    for name in COMPARED:
        figures[f"error_worst_{name}{ending}"] = max(abs(each.error(model, name)) for each in found)
    return figures


def disturbance_figures(found: Sequence[Compared]) -> dict[str, Figure]:
    """What else happened on the machine while the live runs lasted."""
    return {
        "others_cpu_share_max": max(each.others_cpu_share for each in found),
        "node_deaths": sum(each.num_node_deaths for each in found),
    }


def tell(part: str, figures: dict[str, Figure], found: Sequence[Compared], path: str | None) -> None:
    """Print the figures of a part of this experiment, and write its report where a path is given."""
    for key, value in figures.items():
        print(f"{key} {value}")
    if path:
        command = f"python -m experiments.07-simulator-against-live.{part}"
        write_report(path, command, figures, [sample_of(each) for each in found])


def simulated(kind: NodeKind, message_s: float, arm: Arm, chunk: int, requests: Workload, slo: SLO) -> Simulated:
    """The same requests in virtual time."""
    recipe = Recipe(
        kind,
        FleetLinks(MEMORY_BYTES_PER_S, 0.0002, message_s),
        CONTEXT,
        chunk=chunk,
        prefill_chunk=LARGEST_CHUNK,
        max_decode_rows=MAX_NUM_SEQS,
    )
    return simulate(recipe, arm, requests, slo, 0)


def run_figures(records: Sequence[ServedRequest], requests: Workload) -> dict[str, float]:
    found = {name: float(value) for name, value in latencies(records).items()}
    return found | {"goodput_rps": account_of(records, requests.arrivals_s).goodput_rps}


def mean_stages(records: Sequence[ServedRequest]) -> dict[str, float]:
    """Mean seconds of each part of the ledger, of finished requests."""
    timings = [each.timing for each in records if each.timing is not None and each.timing.decode_s]
    return {stage: mean([getattr(timing, f"{stage}_s") for timing in timings]) for stage in STAGES if timings}


def sample_of(each: Compared) -> Sample:
    return {
        "layout": each.layout,
        "rate_rps": each.rate_rps,
        "live": {name: each.live[name] for name in COMPARED},
        "simulated": {model: {name: figures[name] for name in COMPARED} for model, figures in each.simulated.items()},
        "errors": {model: {name: each.error(model, name) for name in COMPARED} for model in each.simulated},
        "live_stages_s": each.live_stages,
        "simulated_stages_s": each.simulated_stages,
        "live_busy_shares": each.live_busy,
        "simulated_busy_shares": each.simulated_busy,
        "others_cpu_share": each.others_cpu_share,
        "node_deaths": each.num_node_deaths,
        "live_outcomes": each.live_outcomes,
    }


def sentence_of(each: Compared) -> str:
    parts = [
        f"{name} {each.live[name]:.4g} live, "
        + ", ".join(
            f"{figures[name]:.4g} ({each.error(model, name):+.0%})" for model, figures in each.simulated.items()
        )
        for name in COMPARED
    ]
    stages = ", ".join(
        f"{stage} {1000 * each.live_stages.get(stage, 0):.1f} / {1000 * each.simulated_stages.get(stage, 0):.1f}"
        for stage in STAGES
    )
    others = f"others {each.others_cpu_share:.0%} of a core"
    head = f"{each.layout} at {each.rate_rps:.2f} req/s ({others}; {each.live_outcomes})"
    shares = (each.live_busy, each.simulated_busy)
    busy = " / ".join(", ".join(f"{share:.0%}" for share in by_node.values()) for by_node in shares)
    died = f"; {each.num_node_deaths} NODES DIED" if each.num_node_deaths else ""
    tail = f"; busy, live / simulated: {busy}" if each.live_busy else ""
    return f"{head}: {'; '.join(parts)}; stages in ms, live / simulated: {stages}{tail}{died}"
