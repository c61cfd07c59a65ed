"""The controller over simulated nodes that really serve: what it gains, and that its changes cost nobody anything."""

from dataclasses import replace
from random import Random

import pytest

from cluster.simulated.fleet import Fleet, FleetOverride, FleetPlanner, FleetRun, run_fleet
from cluster.simulated.shared_links import FleetLinks
from cluster.simulated.whatif import answered
from cluster.workload.items import WorkItem, Workload
from core.costs import StepWork
from core.decisions import DecisionKind
from core.goodput import Outcome
from core.mix import NodeSpec, mix_of
from core.request import SLO
from core.whatif import WhatIfAsked
from scheduler.config import SchedulerConfig
from scheduler.controller import Controller, ControllerConfig
from scheduler.replays import ReplayConfig
from tests.simulated.fleets import COSTS, KV, node

PACE = SLO(2.0, 0.0085)


def fleet(*roles: str) -> Fleet:
    """Nodes of these roles, routed for goodput."""
    nodes = tuple(node(f"n{i}", role, num_blocks=12_000) for i, role in enumerate(roles))
    return Fleet(nodes, KV, 32_768, FleetLinks(2e10), SchedulerConfig(handoff_bytes_per_s=2e10), "goodput")


def turning(seconds: float, seed: int = 3) -> Workload:
    """Many prompt tokens and short answers, then the other way round."""
    chance, items, at_s = Random(seed), list[WorkItem](), 0.0
    for until, rate, prompt, output in ((seconds, 14.0, 2400, 60), (2 * seconds, 10.0, 200, 500)):
        while (at_s := at_s + chance.expovariate(rate)) < until:
            spread = chance.uniform(0.5, 1.5)
            items.append(WorkItem(at_s, round(prompt * spread), round(output * chance.uniform(0.5, 1.5))))
        at_s = until
    return Workload("turning", tuple(items))


def attained(run: FleetRun, since_s: float = 0.0) -> float:
    """The share of requests that came since then and met their SLO."""
    served = [each for each in run.records if each.item.at_s >= since_s]
    return sum(each.is_met for each in served) / len(served)


@pytest.fixture(scope="module")
def adaptive() -> FleetRun:
    """One run of the controller over a load that turns."""
    return run_fleet(fleet("mixed", "mixed", "mixed"), turning(20.0), PACE, controller=Controller(ControllerConfig()))


@pytest.mark.slow
def test_it_is_no_worse_than_either_fixed_layout(adaptive: FleetRun) -> None:
    fixed = [("mixed",) * 3, ("prefill", "prefill", "decode"), ("prefill", "decode", "decode")]
    best = max(attained(run_fleet(fleet(*roles), turning(20.0), PACE)) for roles in fixed)
    assert attained(adaptive) >= best - 0.03


def test_after_the_turn_requests_are_met_again_within_seconds(adaptive: FleetRun) -> None:
    assert attained(adaptive, since_s=25.0) >= 0.95
    assert adaptive.num_lost == 0
    assert {each.outcome for each in adaptive.records} <= {Outcome.FINISHED, Outcome.REFUSED}


def test_a_thousand_changes_of_mixes_under_load_lose_nobody() -> None:
    chance = Random(5)
    names = ["n0", "n1", "n2"]
    overrides = [
        FleetOverride(
            0.02 * i, ((chance.choice(names), mix_of(chance.choice(("prefill", "decode", "mixed")), 512, 64)),)
        )
        for i in range(1000)
    ]
    items = tuple(WorkItem(i / 20, chance.randint(10, 1500), chance.randint(1, 60)) for i in range(400))
    lax = SLO(30.0, 1.0)
    run = run_fleet(fleet("mixed", "mixed", "mixed"), Workload("steady", items), lax, overrides=overrides)
    assert run.num_lost == 0
    assert [each.outcome for each in run.records] == [Outcome.FINISHED] * 400
    assert all(each.num_tokens == each.item.output_tokens for each in run.records)
    assert len(run.mix_changes) >= 600


def asked(*candidates: tuple[str, ...]) -> WhatIfAsked:
    """What these roles would have done with 160 requests in 4 s."""
    spec = NodeSpec(KV.id("l"), KV, 12_000, 32_768, mix_of("mixed", 2048, 64), COSTS)
    mixes = tuple(tuple(mix_of(role, 2048, 64) for role in roles) for roles in candidates)
    times = tuple(i / 40 for i in range(160))
    return WhatIfAsked(1, (spec,) * len(mixes[0]), mixes, times, (1500,) * 160, (50,) * 160, 0.25, PACE, 2e10)


def test_a_replay_tells_good_candidates_from_bad_ones() -> None:
    good, bad = answered(asked(("mixed", "mixed", "mixed"), ("mixed", "closed", "closed"))).goodputs_rps
    assert good > 30.0
    assert bad < 0.7 * good


def test_a_replay_lasts_long_enough_to_show_a_queue_that_only_grows() -> None:
    """Three times what the node can do; in one turn alone every request would still be in time."""
    num, one = 40, asked(("mixed",))
    needed_s = num * COSTS.seconds(StepWork(1, 0, 1500, 1500 * 750.0))
    times = tuple(i / num * needed_s / 3 for i in range(num))
    columns = {"arrived_at_s": times, "prompt_tokens": (1500,) * num, "output_tokens": (1,) * num}
    told = answered(replace(one, slo=SLO(3.0 * times[-1], 1.0), **columns)).goodputs_rps[0]
    assert told < 0.9 * num / times[-1]


@pytest.mark.slow
def test_what_if_answers_reach_the_controller_and_the_run_is_the_same_again() -> None:
    def run() -> FleetRun:
        controller = Controller(ControllerConfig(replays=ReplayConfig(max_arrivals=100, min_span_s=4.0)))
        run = run_fleet(
            fleet("mixed", "mixed"), turning(8.0), PACE, controller=controller, planner=FleetPlanner(answered)
        )
        assert controller.replays.num_stale == 0
        return run

    first, second = run(), run()
    assert first.decisions == second.decisions
    assert any(decision.kind in (DecisionKind.RATIO, DecisionKind.BUDGET) for decision in first.decisions)
