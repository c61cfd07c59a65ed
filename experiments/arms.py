"""What the simulated experiments share: flags, nodes, simulations that are done once, and the search for a rate.

Run from the repository's root: `python -m experiments.02-no-regret.run --json FILE`.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from cluster.capacity_search import TARGET, Point, first_crossing
from cluster.cost_sources import CostAsked, NodeKind, node_kind
from cluster.fleet_plan import Arm, Recipe
from cluster.load_report import account_of
from cluster.plotting import check_plotting
from cluster.report_file import Figure, file_problems
from cluster.simulated.shared_links import FleetLinks
from cluster.simulation import Simulated, longest_context, simulate
from cluster.tune_plan import Candidate, forecast_rps, load_of
from cluster.workload.items import Workload
from core.errors import ConfigError
from core.request import SLO
from scheduler.config import SchedulerConfig

LINK_BYTES_PER_S = 25e9
"""Of a node's card, each way: a 200 Gb/s NIC."""

FACTOR = 1.2
"""The search goes up or down by this until it has crossed the target; the crossing is put on a straight line."""

ADAPTIVE_CHUNK = 8192
"""An adaptive node may be given any chunk up to this."""


def arguments(doc: str | None, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The flags that every experiment has. Raises ConfigError for files that cannot be written."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="a small part of it, to see that it runs")
    parser.add_argument("--json", metavar="FILE", default=None, help="write figures and samples here")
    parser.add_argument("--plot", metavar="FILE.png", default=None, help="draw it (needs matplotlib)")
    if add is not None:
        add(parser)
    args = parser.parse_args()
    problems = file_problems(args)
    if problems:
        raise ConfigError(problems)
    if args.plot:
        check_plotting()
    return args


def say(text: str) -> None:
    """To whoever waits."""
    print(text, file=sys.stderr, flush=True)


def skip(what: str) -> None:
    """Say loudly that a part is left out."""
    say(f"SKIPPED: {what}")


def roofline(gpu: str, shape: str, tp: int = 1) -> NodeKind:
    """A node by its data sheet; blocks of 256 tokens, for speed."""
    return node_kind(CostAsked(gpu=gpu, shape=shape, block_size=256), tp)


def recipe_for(kind: NodeKind, workload: Workload) -> Recipe:
    """Nodes of this kind for this workload, policy `goodput` with admission, as `penstock simulate` makes them."""
    return Recipe(
        kind=kind,
        links=FleetLinks(LINK_BYTES_PER_S, 0.0002),
        max_model_len=longest_context(workload),
        scheduler=SchedulerConfig(handoff_bytes_per_s=LINK_BYTES_PER_S),
    )


def aggregated(recipe: Recipe, num_nodes: int, chunks: Iterable[int]) -> list[Candidate]:
    """All nodes do both, by each chunk."""
    return [Candidate(replace(recipe, chunk=chunk), Arm(0, 0, num_nodes)) for chunk in chunks]


def disaggregated(recipe: Recipe, num_nodes: int, chunks: Iterable[int]) -> list[Candidate]:
    """All divisions of the nodes into prefill and decode, by each chunk."""
    splits = [Arm(num, num_nodes - num, 0) for num in range(1, num_nodes)]
    return [Candidate(replace(recipe, prefill_chunk=chunk), arm) for chunk in chunks for arm in splits]


def adaptive(recipe: Recipe, num_nodes: int) -> Candidate:
    """The controller decides, with replays as live; all nodes begin mixed."""
    return Candidate(replace(recipe, chunk=ADAPTIVE_CHUNK), Arm(0, 0, num_nodes, adapts=True, replays=True))


def by_forecast(candidates: Sequence[Candidate], workload: Workload, slo: SLO) -> list[Candidate]:
    """The same with the closed forms' rate, the highest first."""
    load = load_of(workload)
    rated = [replace(each, forecast_rps=forecast_rps(each, load, slo)) for each in candidates]
    return sorted(rated, key=lambda each: -each.forecast_rps)


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate and the highest rate that it holds; 0: none that was tried."""

    candidate: Candidate
    rate_rps: float


@dataclass(slots=True)
class Runs:
    """Simulations under one SLO, of one workload per seed, the same for all candidates.

    Owns: the figures of what was run; nothing is run twice. Requests that come in the first `warm_up_s` are served, but
    count for nobody.
    """

    workloads: Sequence[Workload]
    slo: SLO
    target: float = TARGET
    warm_up_s: float = 0.0
    done: dict[tuple[str, float, int], dict[str, Figure]] = field(default_factory=dict)

    def run(self, candidate: Candidate, rate_rps: float, seed: int = 0) -> Simulated:
        """One simulation."""
        return simulate(candidate.recipe, candidate.arm, self.workloads[seed].at_rate(rate_rps), self.slo, seed)

    def figures(self, candidate: Candidate, rate_rps: float, seed: int = 0) -> dict[str, Figure]:
        """Of one simulation."""
        key = (str(candidate), rate_rps, seed)
        if key not in self.done:
            self.done[key] = self._counted(self.run(candidate, rate_rps, seed))
        return self.done[key]

    def attainment(self, candidate: Candidate, rate_rps: float, seed: int = 0) -> float:
        """Of one simulation."""
        return float(self.figures(candidate, rate_rps, seed)["attainment"])

    def goodput(self, candidate: Candidate, rate_rps: float) -> float:
        """The mean over all seeds, in requests per second."""
        seeds = range(len(self.workloads))
        return sum(float(self.figures(candidate, rate_rps, seed)["goodput_rps"]) for seed in seeds) / len(seeds)

    def capacity(self, candidate: Candidate, start_rps: float, max_steps: int = 16) -> float:
        """The rate at which attainment crosses the target; 0 where none that was tried holds it."""
        rate, holds = start_rps, self._holds(candidate, start_rps)
        for _ in range(max_steps):
            following = rate * FACTOR if holds else rate / FACTOR
            if self._holds(candidate, following) != holds:
                return self._crossing(candidate, *sorted((rate, following)))
            rate = following
        return rate if holds else 0.0

    def best(self, candidates: Sequence[Candidate], start_rps: float) -> Found:
        """The candidate with the highest capacity; one that does not hold 3 % more than the best so far is passed."""
        found = Found(candidates[0], self.capacity(candidates[0], start_rps))
        for each in candidates[1:]:
            at_least = found.rate_rps * 1.03
            if not found.rate_rps or self._holds(each, at_least):
                found = Found(each, self.capacity(each, at_least or start_rps))
        return found

    def _counted(self, run: Simulated) -> dict[str, Figure]:
        records = [each for each in run.load.records if each.item.at_s >= self.warm_up_s]
        account = account_of(records, run.load.arrivals_s - self.warm_up_s, run.load.num_lost)
        return run.figures() | {"goodput_rps": account.goodput_rps, "attainment": account.attainment or 0.0}

    def _crossing(self, candidate: Candidate, low: float, high: float) -> float:
        points = [Point(rate, self.attainment(candidate, rate)) for rate in (low, high)]
        return first_crossing(points, self.target).rate_rps

    def _holds(self, candidate: Candidate, rate_rps: float) -> bool:
        return self.attainment(candidate, rate_rps) >= self.target


def mean(values: Sequence[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)
