"""Plans that rest on few requests: what they are hedged with, and how soon they may be taken back."""

from dataclasses import replace

import pytest

from core.costs import StepWork
from core.decisions import DecisionKind
from core.events import NodeJoined, StatsReported
from core.ids import NodeId
from core.mix import mix_of
from core.request import SLO
from core.whatif import WhatIfAnswered
from scheduler.closed_forms import Load, NodeAbility
from scheduler.config import SchedulerConfig
from scheduler.controller import ControllerConfig
from scheduler.hedging import LEAST_DOUBT, hedged, undivided
from scheduler.layouts import Floors, Option, PlanNode, Search
from scheduler.plan_nodes import plan_nodes
from scheduler.plans import Forecaster, Goal
from scheduler.policies.least_loaded import LeastLoaded
from scheduler.replays import NEWS, ReplayConfig, Replayed, Replays
from scheduler.restraint import Restraint, RestraintConfig
from scheduler.scheduler import Scheduler
from tests.machines.controlled import COSTS, Bench, Phase
from tests.machines.seen import report, spec_of
from tests.machines.test_load_meter import Feed

GOAL = Goal(SLO(2.0, 0.008))
ABILITY = NodeAbility(COSTS, 800_000, 256, 8192)
NODES = [PlanNode(NodeId(f"n{i}"), ABILITY, mix_of("mixed", 8192, 256)) for i in range(4)]
LOAD = Load(35.0, (1000, 2000, 4000), (100, 200, 300))


def options(load: Load) -> list[Option]:
    return Search(NODES, Forecaster(load, GOAL)).options()


def test_a_load_that_leans_has_another_ratio_and_as_much_work() -> None:
    lean = LOAD.leaning(0.5)
    before, after = LOAD.mean_prompt / LOAD.mean_output, lean.mean_prompt / lean.mean_output
    assert after / before == pytest.approx(2.718**0.5, rel=0.01)
    assert lean.mean_prompt * lean.mean_output == pytest.approx(LOAD.mean_prompt * LOAD.mean_output, rel=0.01)


def test_without_doubt_forecasts_are_what_they_were() -> None:
    found = options(LOAD)
    assert hedged(NODES, found, LOAD, GOAL, LEAST_DOUBT / 2) == found


def test_under_doubt_a_division_that_only_one_ratio_bears_is_worth_less() -> None:
    found = options(LOAD)
    by_key = {option.key: option for option in hedged(NODES, found, LOAD, GOAL, 0.6)}
    assert found[0].key in by_key
    apart = max((o for o in found if o.kind == "disaggregated"), key=lambda o: o.forecast.goodput_rps)
    assert by_key[apart.key].forecast.goodput_rps < 0.95 * apart.forecast.goodput_rps
    assert {"aggregated", "disaggregated", "between"} <= {option.kind for option in by_key.values()}


def test_what_is_stands_first_whatever_it_is_worth() -> None:
    found = options(LOAD)
    worst = min(found, key=lambda option: option.forecast.goodput_rps)
    rest = [option for option in found if option.key != worst.key]
    assert hedged(NODES, [worst, *rest], LOAD, GOAL, 0.6)[0].key == worst.key


@pytest.mark.parametrize(("num", "doubt", "least"), [(4, 0.0, 0), (4, 0.2, 1), (4, 0.4, 2), (4, 5.0, 2), (64, 0.05, 4)])
def test_the_less_is_known_the_more_nodes_go_on_doing_both(num: int, doubt: float, least: int) -> None:
    assert undivided(num, doubt) == least


@pytest.mark.parametrize("is_free", [True, False])
def test_so_many_of_the_free_nodes_stay_mixed(is_free: bool) -> None:
    nodes = [*NODES[1:], replace(NODES[0], is_free=is_free)]
    for option in Search(nodes, Forecaster(LOAD, GOAL), Floors(mixed=3)).options():
        assert sum(mix.role == "mixed" for mix in option.mixes) >= 3


def test_the_first_plan_of_a_load_that_wants_three_to_one_lets_the_fourth_node_do_both() -> None:
    bench = Bench(ControllerConfig(), slo=GOAL.slo).run(Phase(12, 8, 9000, 100, spread=0.9))
    first = bench.of_kind(DecisionKind.RATIO)[0]
    assert first.at < 5.0
    assert [step.becomes.role for step in first.steps].count("prefill") == 3
    assert bench.count("mixed") == 1


def test_what_replays_say_of_a_layout_holds_for_those_with_its_roles_and_their_mean_for_others() -> None:
    replays, search = Replays(ReplayConfig(min_span_s=1.0)), Search(NODES, Forecaster(LOAD, GOAL))
    prefill, mixed, decode = (mix_of(role, 2048, 256) for role in ("prefill", "mixed", "decode"))
    beside = [search.forecast((prefill,) * num + (mixed,) * (4 - num)) for num in (1, 2)]
    apart, together = search.forecast((prefill, prefill, decode, decode)), search.forecast((mixed,) * 4)
    feed = Feed().run(10, 12, 2000)
    replays.ask([], [beside[0], apart], feed.meter.arrivals(), Replayed(LOAD, GOAL.slo, 1e10), 20.0)
    forecasts = (1.2 * beside[0].forecast.goodput_rps, 0.8 * apart.forecast.goodput_rps)
    assert replays.take(WhatIfAnswered(1, forecasts), 21.0)
    factors = [
        replays.corrected(o, 1000.0, 22.0).forecast.goodput_rps / o.forecast.goodput_rps for o in (beside[1], together)
    ]
    assert factors == pytest.approx([1.2, 1.0])


def test_doubt_falls_as_requests_come_and_answers_end() -> None:
    few = Feed().run(3, 5, 1000)
    many = Feed().run(30, 5, 1000)
    of_few, of_many = (feed.meter.load(feed.now) for feed in (few, many))
    assert of_few is not None
    assert of_many is not None
    assert few.meter.doubt(of_few) > 1.5 * many.meter.doubt(of_many) > 0.0


def test_a_change_that_rested_on_few_requests_is_taken_back_when_three_times_as_many_came() -> None:
    restraint = Restraint(RestraintConfig(settling_s=0.0, num_confirmations=1))
    there = dict.fromkeys(NODES[:2], "prefill")
    restraint.changed(there, 10.0, num_known=8)
    split = [PlanNode(node.node, ABILITY, mix_of("prefill", 8192, 256)) for node in NODES[:2]]
    back = dict.fromkeys(split, "mixed")
    assert not restraint.may_change(back, 0.5, 0.1, 20.0, num_known=23, is_other_load=False)
    assert restraint.may_change(back, 0.5, 0.1, 20.0, num_known=24, is_other_load=False)
    restraint.changed(back, 20.0, num_known=24)
    assert not restraint.may_change(there, 0.5, 0.1, 30.0, num_known=71, is_other_load=False)
    assert restraint.num_reversals == 1


def test_the_first_change_needs_to_gain_little_and_later_ones_more() -> None:
    restraint = Restraint(RestraintConfig(settling_s=0.0, num_confirmations=1))
    there = dict.fromkeys(NODES[:2], "prefill")
    assert not restraint.may_change(there, 0.5, 0.019, 10.0, num_known=100, is_other_load=False)
    assert restraint.may_change(there, 0.5, 0.021, 10.0, num_known=100, is_other_load=False)
    restraint.changed(there, 10.0, num_known=100)
    further = dict.fromkeys(NODES[2:], "decode")
    assert not restraint.may_change(further, 0.5, 0.07, 20.0, num_known=100, is_other_load=True)
    assert restraint.may_change(further, 0.5, 0.08, 20.0, num_known=100, is_other_load=True)


def test_one_replay_does_not_undo_what_those_before_it_said() -> None:
    replays, found = Replays(ReplayConfig(min_span_s=1.0)), options(LOAD)[:2]
    feed = Feed().run(10, 12, 2000)
    for number, factor in ((1, 1.0), (2, 1.4)):
        replays.ask([], found, feed.meter.arrivals(), Replayed(LOAD, GOAL.slo, 1e10), 20.0 * number)
        answer = WhatIfAnswered(number, tuple(factor * option.forecast.goodput_rps for option in found))
        assert replays.take(answer, 20.0 * number + 1)
    told = replays.corrected(found[0], 1000.0, 50.0).forecast.goodput_rps / found[0].forecast.goodput_rps
    assert told == pytest.approx(1.0 + NEWS * 0.4)


def test_a_node_that_ran_no_step_yet_is_taken_to_be_like_another_of_its_role() -> None:
    scheduler = Scheduler(SchedulerConfig(), LeastLoaded())
    for i, role in enumerate(("prefill", "decode", "decode")):
        scheduler.handle(NodeJoined(NodeId(f"n{i}"), replace(spec_of(role), costs=None)), 0.0)
    prompts, rows = StepWork(5, 0, 4000, 4000 * 400.0), StepWork(0, 50, 0, 0.0, 800, 800_000)
    scheduler.handle(StatsReported(NodeId("n0"), report(prompts, 0.5)), 1.0)
    assert plan_nodes(scheduler.view, set(), 0.0) is None, "no decode node has shown anything"
    scheduler.handle(StatsReported(NodeId("n2"), report(rows, 1.5)), 1.0)
    nodes = plan_nodes(scheduler.view, set(), 0.0)
    assert nodes is not None
    assert nodes[1].ability.costs == nodes[2].ability.costs
    assert nodes[1].ability.costs.decode_fixed_s > 0.01
