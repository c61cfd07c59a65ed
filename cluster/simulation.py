"""One simulated run from a recipe, an arm and a workload, as a load run that the report can be made from."""

from dataclasses import dataclass

from cluster.fleet_plan import Arm, Recipe, fleet_of
from cluster.load_report import LoadRun, load_report
from cluster.report_file import Figure
from cluster.simulated.fleet import FleetPlanner, FleetRun, FleetSupply, num_reversals, run_fleet
from cluster.simulated.whatif import answered
from cluster.workload.items import Workload
from core.errors import ConfigError
from core.request import SLO
from scheduler.capacity import CapacityConfig
from scheduler.controller import Controller, ControllerConfig
from scheduler.replays import ReplayConfig

MAX_TOKENS_FACTOR = 2
"""Simulated clients ask for at most so many times the longest answer, so that no length can be known from it."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """A run and its account."""

    fleet: FleetRun
    load: LoadRun

    def figures(self) -> dict[str, Figure]:
        """The report, with what only a simulation has."""
        run = self.fleet
        busy = {
            "prefill_busy_share": sum(node.prefill_busy_s for node in run.nodes),
            "decode_busy_share": sum(node.decode_busy_s for node in run.nodes),
        }
        alive_s = sum(node.alive_s for node in run.nodes) or 1.0
        return load_report(self.load) | {
            **{name: seconds / alive_s for name, seconds in busy.items()},
            "extrapolated_steps": run.num_extrapolated,
            "steps": sum(node.num_steps for node in run.nodes),
            "peak_handoffs": run.peak_handoffs,
            "decisions": len(run.decisions),
        }


@dataclass(frozen=True, slots=True)
class Elastic:
    """A fleet that grows and shrinks: it begins with `num_first` of the arm's nodes, and keeps as many as the capacity
    controller says; a node is ready `start_s` after it is asked for."""

    capacity: CapacityConfig
    num_first: int
    start_s: float = 30.0


def simulate(
    recipe: Recipe, arm: Arm, workload: Workload, slo: SLO, seed: int, elastic: Elastic | None = None
) -> Simulated:
    """Serve the workload. Same arguments, same run. Raises ConfigError for a fleet that cannot be, or is elastic
    without a controller."""
    if elastic is not None and not arm.adapts:
        raise ConfigError([f"{arm}: only an adaptive fleet can be elastic"])
    fleet, controller, planner, supply = fleet_of(recipe, arm), None, None, None
    if arm.adapts:
        replays = ReplayConfig() if arm.replays else None
        capacity = elastic.capacity if elastic else None
        controller = Controller(ControllerConfig(slo=slo, replays=replays, capacity=capacity))
        planner = FleetPlanner(answered) if arm.replays else None
    if elastic is not None:
        supply = FleetSupply(tuple(node.name for node in fleet.nodes[elastic.num_first :]), elastic.start_s)
    run = run_fleet(fleet, workload, slo, seed=seed, controller=controller, planner=planner, supply=supply)
    changes = [change for change in run.mix_changes if change.at_s > 0]  # not those while the nodes join
    duration_s = max(run.duration_s, workload.duration_s) or 1.0
    place_s = {node.name: node.alive_s + node.starting_s for node in run.nodes}
    load = LoadRun(
        records=run.records,
        arrivals_s=workload.arrivals_s or duration_s,
        duration_s=duration_s,
        num_nodes=sum(place_s.values()) / duration_s,
        num_gpus=sum(place_s[node.name] * node.num_gpus for node in run.nodes) / duration_s,
        num_lost=run.num_lost,
        num_mix_changes=len(changes),
        num_reversals=num_reversals(fleet, changes),
        cost=sum(place_s[node.name] / 3600 * node.cost_per_hour for node in run.nodes),
    )
    return Simulated(run, load)


def longest_context(workload: Workload) -> int:
    """Tokens of prompt and largest answer together that a model must take for this workload."""
    prompt = max(item.prompt_tokens for item in workload.items)
    return prompt + MAX_TOKENS_FACTOR * max(item.output_tokens for item in workload.items)
