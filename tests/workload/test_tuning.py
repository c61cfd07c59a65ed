"""What `penstock tune` tries, how it climbs, and what it concludes; simulations are stood in for by a formula."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from cluster import tune_search
from cluster.capacity_search import Capacity, Point
from cluster.cost_sources import CostAsked, node_kind
from cluster.fleet_plan import Arm, Recipe
from cluster.simulated.shared_links import FleetLinks
from cluster.tune_command import verdict_of
from cluster.tune_plan import Candidate, candidates, load_of, screened
from cluster.tune_search import LIVES, Tuned, Tuner, finalists
from cluster.workload.items import WorkItem, Workload
from core.request import SLO

KIND = node_kind(CostAsked(), 1)
RECIPE = Recipe(KIND, FleetLinks(25e9), 4096)
WORKLOAD = Workload("w", tuple(WorkItem(0.1 * n, 800, 100) for n in range(50)))
TARGETS = SLO(1.0, 0.05)


@dataclass
class Stood:
    """A run that only knows its attainment."""

    attainment: float

    def figures(self) -> dict[str, float]:
        """The one figure."""
        return {"attainment": self.attainment}


def tuned(layout: Arm, short: float, long: float | None = None) -> Tuned:
    found = None if long is None else Capacity(long, "b", True)
    return Tuned(Candidate(RECIPE, layout), (Point(1.0, 1.0),), Capacity(short, "c", True), found)


TOGETHER, APART = Arm(0, 0, 2), Arm(1, 1, 0)


def test_every_way_to_divide_the_gpus_is_a_candidate() -> None:
    kinds = [KIND, replace(KIND, num_gpus=2)]
    found = list(candidates(RECIPE, kinds, 4, [512, 1024]))
    assert {(each.layout, each.sizes) for each in found} == {
        ("aggregated", "1"),
        ("aggregated", "2"),
        *((f"disaggregated:{p}:{4 - p}", "1") for p in (1, 2, 3)),
        ("disaggregated:1:1", "2"),
        ("disaggregated:1:1", "1+2"),
        ("disaggregated:2:1", "1+2"),
        ("disaggregated:1:2", "2+1"),
    } | {("disaggregated:1:1", "1+2")}
    assert sum(each.layout == "aggregated" for each in found) == 4
    assert all(0 < each.num_gpus <= 4 for each in found)


def test_closed_forms_keep_the_splits_that_suit_the_load() -> None:
    """Prompts of 8,000 tokens with answers of 10 want prefill nodes, the other way round decode nodes."""
    every = list(candidates(RECIPE, [KIND], 5, [1024]))
    for item, layout in ((WorkItem(0, 8000, 10), "disaggregated:4:1"), (WorkItem(0, 20, 2000), "disaggregated:1:4")):
        workload = Workload("w", (item, replace(item, at_s=1.0)))
        split = screened(every, workload, TARGETS, 1)[-1]
        assert split.layout == layout and split.forecast_rps > 0


def test_many_lengths_are_condensed_and_keep_their_mean() -> None:
    workload = Workload("w", tuple(WorkItem(n, 1 + n, 1) for n in range(1000)))
    load = load_of(workload)
    assert len(load.prompt_tokens) == 32 and load.mean_prompt == pytest.approx(500, rel=0.01)


@pytest.mark.parametrize("capacity", [0.6, 4.0, 30.0])
def test_the_ladder_goes_on_until_the_curve_has_crossed(capacity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list[float]()

    def stand_in(recipe: Recipe, arm: Arm, workload: Workload, slo: SLO, seed: int) -> Any:
        lengths.append(workload.arrivals_s)
        return Stood(1.0 if workload.rate_rps <= capacity else 0.4)

    monkeypatch.setattr(tune_search, "simulate", stand_in)
    tuner = Tuner(WORKLOAD, TARGETS, 0, 0.9, lambda *_: None)
    found = tuner.tuned(Candidate(RECIPE, TOGETHER), (4.0, 8.0, 16.0), extends=True)
    assert found.capacity.is_bracketed
    before = len(lengths)
    refined = tuner.refined(found)
    assert refined.goodput_per_gpu == pytest.approx(capacity / 2, rel=0.07)
    assert all(each >= LIVES * tuner.life_s * 0.99 for each in lengths[before:])


@pytest.mark.parametrize(
    ("each", "says"),
    [
        ([tuned(TOGETHER, 4.0), tuned(APART, 8.0)], "Disaggregate: disaggregated:1:1"),
        ([tuned(TOGETHER, 4.0), tuned(APART, 4.02)], "Do not disaggregate: aggregated"),
        ([tuned(TOGETHER, 4.0, 4.0), tuned(APART, 8.0, 3.0)], "Do not disaggregate: aggregated"),
        ([tuned(TOGETHER, 4.0), tuned(APART, 0.0)], "no disaggregated layout meets the SLO"),
        ([tuned(TOGETHER, 0.0), tuned(APART, 4.0)], "no aggregated layout meets the SLO"),
        ([tuned(TOGETHER, 0.0), tuned(APART, 0.0)], "Infeasible"),
        ([tuned(TOGETHER, 4.0)], "Do not disaggregate"),
    ],
)
def test_the_verdict_begins_with_what_to_do(each: list[Tuned], says: str) -> None:
    assert says in verdict_of(each)


def test_the_best_of_each_sort_and_the_adaptive_one_are_searched_again() -> None:
    adaptive = tuned(Arm(0, 0, 2, adapts=True), 1.0)
    every = [tuned(TOGETHER, 1.0), tuned(TOGETHER, 3.0), tuned(TOGETHER, 2.0), tuned(APART, 1.0), adaptive]
    assert [each.capacity.rate_rps for each in finalists(every)] == [3.0, 2.0, 1.0, 1.0]
