"""One simulated run from a recipe, an arm and a workload, as a load run that the report can be made from."""

from dataclasses import dataclass

from cluster.fleet_plan import Arm, Recipe, fleet_of
from cluster.load_report import LoadRun, load_report
from cluster.report_file import Figure
from cluster.simulated.fleet import FleetPlanner, FleetRun, num_reversals, run_fleet
from cluster.simulated.whatif import answered
from cluster.workload.items import Workload
from core.request import SLO
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


def simulate(recipe: Recipe, arm: Arm, workload: Workload, slo: SLO, seed: int) -> Simulated:
    """Serve the workload. Same arguments, same run. Raises ConfigError for a fleet that cannot be."""
    fleet, controller, planner = fleet_of(recipe, arm), None, None
    if arm.adapts:
        controller = Controller(ControllerConfig(slo=slo, replays=ReplayConfig() if arm.replays else None))
        planner = FleetPlanner(answered) if arm.replays else None
    run = run_fleet(fleet, workload, slo, seed=seed, controller=controller, planner=planner)
    changes = [change for change in run.mix_changes if change.at_s > 0]  # not those while the nodes join
    duration_s = max(run.duration_s, workload.duration_s) or 1.0
    alive_s = sum(node.alive_s for node in run.nodes)
    load = LoadRun(
        records=run.records,
        arrivals_s=workload.arrivals_s or duration_s,
        duration_s=duration_s,
        num_nodes=alive_s / duration_s,
        num_gpus=sum(node.alive_s * node.num_gpus for node in run.nodes) / duration_s,
        num_lost=run.num_lost,
        num_mix_changes=len(changes),
        num_reversals=num_reversals(fleet, changes),
        cost=sum(node.alive_s / 3600 * node.cost_per_hour for node in run.nodes),
    )
    return Simulated(run, load)


def longest_context(workload: Workload) -> int:
    """Tokens of prompt and largest answer together that a model must take for this workload."""
    prompt = max(item.prompt_tokens for item in workload.items)
    return prompt + MAX_TOKENS_FACTOR * max(item.output_tokens for item in workload.items)
