"""The controller, load in and mixes out: what it chooses, when it dares to, and whom it obeys."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.decisions import DecisionKind, OverrideLifted
from core.events import DrainAsked, Overridden
from core.ids import NodeId
from core.mix import mix_of
from core.request import SLO
from core.whatif import WhatIfAnswered
from scheduler.controller import ControllerConfig
from scheduler.replays import ReplayConfig
from scheduler.restraint import RestraintConfig
from tests.machines.controlled import COSTS, Bench, Phase

PACE = SLO(2.0, 0.008)
"""Strict on the time per token: phases should be apart."""

MUCH_PROMPT = Phase(30, 40, 4000, 125)
MUCH_ANSWER = Phase(30, 40, 500, 1000)
CHANGES = (DecisionKind.RATIO, DecisionKind.BUDGET)


def test_when_the_load_turns_from_prompts_to_answers_nodes_follow_within_seconds() -> None:
    bench = Bench(ControllerConfig(), ("mixed",) * 8, slo=PACE).run(MUCH_PROMPT)
    before, turned_at = bench.count("prefill"), bench.now
    bench.run(MUCH_ANSWER)
    after = bench.count("prefill")
    assert before > after
    assert min(at for at in bench.changed_at if at > turned_at) - turned_at < 5.0
    assert len([at for at in bench.changed_at if at > turned_at]) <= 3


def test_a_decision_says_what_changes_why_and_on_which_numbers() -> None:
    bench = Bench(ControllerConfig(), slo=PACE).run(Phase(20, 20, 2000, 250))
    decision = bench.of_kind(DecisionKind.RATIO)[0]
    assert {str(step.node) for step in decision.steps} <= set(bench.now_roles)
    assert all(step.was != step.becomes for step in decision.steps)
    assert decision.goodput_after_rps > decision.goodput_before_rps
    assert decision.fact("ttft_slo_s") == 2.0
    assert decision.fact("planned_rps") == pytest.approx(20 * 1.25, rel=0.5)
    assert "instead of 4 mixed" in decision.reason
    assert decision.reason in str(decision)


@pytest.mark.parametrize(("seed", "rate", "slo"), [(0, 4, PACE), (1, 7, SLO(0.4, 0.012))])
def test_under_constant_noisy_load_it_settles(seed: int, rate: float, slo: SLO) -> None:
    bench = Bench(ControllerConfig(), ("mixed",) * 3, seed=seed, slo=slo)
    bench.run(Phase(600, rate, 2500, 300, spread=0.9))
    assert bench.controller.restraint.num_reversals <= 2
    assert len(bench.changed_at) <= 4


def test_more_than_any_layout_can_serve_is_said_once_and_changes_little() -> None:
    bench = Bench(ControllerConfig(), slo=PACE).run(Phase(60, 80, 4000, 300))
    assert bench.controller.is_infeasible
    assert len(bench.of_kind(DecisionKind.INFEASIBLE)) == 1
    assert "no layout" in bench.of_kind(DecisionKind.INFEASIBLE)[0].reason
    assert len(bench.changed_at) <= 3
    bench.run(Phase(60, 5, 4000, 300))
    assert len(bench.of_kind(DecisionKind.FEASIBLE)) == 1
    assert not bench.controller.is_infeasible


def test_an_slo_that_nothing_meets_changes_nothing_but_the_first_chunks() -> None:
    bench = Bench(ControllerConfig(), slo=SLO(0.001, 0.001)).run(Phase(30, 10, 2000, 300))
    assert bench.controller.is_infeasible
    assert [decision.kind for decision in bench.of_kind(*CHANGES)] == [DecisionKind.BUDGET]
    assert max(bench.changed_at) < 1.0


def test_what_the_operator_sets_stays_until_it_is_given_back() -> None:
    bench = Bench(ControllerConfig(), ("mixed",) * 4, slo=PACE)
    set_mix = mix_of("prefill", 2048, 256)
    bench.take(bench.scheduler.handle(Overridden((NodeId("n3@0"),), (set_mix,)), 0.0))
    bench.run(replace(MUCH_ANSWER, rate_rps=20))
    assert bench.now_roles["n3@0"] == "prefill"
    assert bench.count("prefill") == 1
    bench.take(bench.scheduler.handle(OverrideLifted(), bench.now))
    bench.run(replace(MUCH_ANSWER, rate_rps=20, prompt_tokens=100, output_tokens=3000))
    assert [len(d.steps) for d in bench.of_kind(DecisionKind.OVERRIDE)] == [1, 1]
    assert "n3@0" in {str(step.node) for d in bench.of_kind(*CHANGES) for step in d.steps}


def test_a_set_node_that_comes_back_is_still_the_operators() -> None:
    bench = Bench(ControllerConfig(), ("mixed",) * 4, slo=PACE)
    bench.take(bench.scheduler.handle(Overridden((NodeId("n3@0"),), (mix_of("prefill", 2048, 256),)), 0.0))
    bench.lose("n3@0")
    bench.join("n3@1", "prefill")
    bench.run(MUCH_ANSWER)
    assert bench.now_roles["n3@1"] == "prefill"


def test_a_node_that_drains_is_left_alone() -> None:
    bench = Bench(ControllerConfig(), ("mixed",) * 4, slo=PACE)
    bench.take(bench.scheduler.handle(DrainAsked(NodeId("n0@0")), 0.0))
    bench.run(Phase(30, 20, 2000, 250))
    assert bench.now_roles["n0@0"] == "closed"
    assert bench.count("prefill") + bench.count("decode") + bench.count("mixed") == 3


def test_advice_changes_nothing_and_is_not_repeated() -> None:
    bench = Bench(ControllerConfig(advises=True), slo=PACE).run(Phase(60, 20, 2000, 250, spread=0.0))
    assert bench.count("mixed") == 4
    assert bench.of_kind(*CHANGES) == []
    advice = bench.of_kind(DecisionKind.ADVICE)
    assert 1 <= len(advice) <= 3
    assert advice[0].steps


def test_when_nodes_are_lost_the_rest_is_planned_anew_at_once() -> None:
    bench = Bench(ControllerConfig(), ("mixed",) * 6, slo=PACE).run(Phase(30, 20, 3000, 150))
    lost = [name for name, role in bench.now_roles.items() if role == "decode"]
    assert 0 < len(lost) < 6
    for name in lost:
        bench.lose(name)
    lost_at = bench.now
    bench.run(Phase(10, 20, 3000, 150))
    assert bench.count("decode") + bench.count("mixed") >= 1
    assert bench.count("prefill") + bench.count("mixed") >= 1
    assert min(at for at in bench.changed_at if at > lost_at) - lost_at < 5.0
    assert bench.scheduler.view.largest_request_blocks > 0


def test_a_node_that_joins_is_put_to_use() -> None:
    bench = Bench(ControllerConfig(), ("prefill", "decode"), slo=PACE).run(Phase(30, 12, 4000, 100))
    bench.join("n2@0", "decode")
    bench.run(Phase(20, 12, 4000, 100))
    assert bench.count("prefill") == 2
    assert bench.count("decode") + bench.count("mixed") == 1


def test_of_unequal_nodes_each_does_what_it_does_better() -> None:
    """Half of the nodes compute prompts three times as fast as the others; their steps of rows are slower."""
    fast = replace(COSTS, per_prefill_token_s=8e-6, decode_fixed_s=0.0065)
    slow = replace(COSTS, per_prefill_token_s=4e-5, decode_fixed_s=0.003)
    bench = Bench(ControllerConfig(), ("mixed",) * 4, costs=(slow, fast, slow, fast), slo=PACE)
    bench.run(Phase(60, 30, 2000, 250))
    assert {bench.now_roles["n1@0"], bench.now_roles["n3@0"]} == {"prefill"}
    assert "prefill" not in {bench.now_roles["n0@0"], bench.now_roles["n2@0"]}


@settings(max_examples=8, deadline=None)
@given(
    phases=st.lists(
        st.builds(
            Phase,
            st.floats(3.0, 25.0),
            st.floats(0.5, 20.0),
            st.integers(20, 6000),
            st.integers(2, 800),
            st.floats(0.0, 0.9),
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 5),
)
def test_bounded_load_gives_bounded_changes(phases: list[Phase], seed: int) -> None:
    """However the load jumps, mixes change no more often than the hold allows, and both phases always have a node.

    The first change may be the chunks for a start, which come before there is a plan, and hold none up.
    """
    config = ControllerConfig()
    bench = Bench(config, seed=seed, slo=PACE)
    for phase in phases:
        bench.run(phase)
        roles = set(bench.now_roles.values())
        assert roles & {"prefill", "mixed"}
        assert roles & {"decode", "mixed"}
    hold_s = config.restraint.hold_s
    gaps = [b - a for a, b in zip(bench.changed_at, bench.changed_at[1:], strict=False)]
    assert all(gap >= hold_s - 1e-9 for gap in gaps[1:])
    assert len(bench.changed_at) <= 2 + bench.now / hold_s


# ── what-if ──────────────────────────────────────────────────────────────────────────────────────────────────────────

REPLAYS = ControllerConfig(replays=ReplayConfig(), restraint=RestraintConfig(settling_s=0.0))


def asked_bench() -> Bench:
    """A bench that has asked its first question and not got an answer."""
    bench = Bench(REPLAYS, ("decode", "prefill", "decode", "decode"), slo=PACE)
    while not bench.asked:
        bench.run(Phase(1, 20, 2000, 250, spread=0.2))
        assert bench.now < 60
    return bench


def test_the_planner_is_asked_with_what_is_and_with_all_kinds_of_layouts() -> None:
    asked = asked_bench().asked[0]
    kinds = {frozenset(mix.role for mix in candidate) for candidate in asked.candidates}
    assert frozenset({"prefill", "decode"}) in kinds
    assert frozenset({"mixed"}) in kinds
    assert len(asked.arrived_at_s) == len(asked.prompt_tokens) == len(asked.output_tokens) >= 100
    assert asked.arrived_at_s[0] == 0.0
    assert all(spec.costs is not None for spec in asked.specs)


def test_an_answer_that_contradicts_the_formulas_is_believed() -> None:
    bench = asked_bench()
    asked = bench.asked[0]
    rate = len(asked.arrived_at_s) / asked.arrived_at_s[-1]
    worse = tuple(rate if i == 0 else 0.3 * rate for i in range(len(asked.candidates)))
    changed_at = list(bench.changed_at)
    bench.scheduler.handle(WhatIfAnswered(asked.ask, worse), bench.now)
    bench.run(Phase(20, 20, 2000, 250, spread=0.2))
    assert bench.changed_at == changed_at


def test_where_replays_take_back_what_was_advised_something_else_is_advised() -> None:
    bench = Bench(replace(REPLAYS, advises=True), slo=PACE)
    while not bench.asked:
        bench.run(Phase(1, 20, 2000, 250, spread=0.2))
        assert bench.now < 60
    asked, before = bench.asked[0], bench.of_kind(DecisionKind.ADVICE)
    assert "2 prefill, 2 mixed" in before[-1].reason
    apart = [{mix.role for mix in mixes} == {"prefill", "decode"} for mixes in asked.candidates]
    bench.scheduler.handle(WhatIfAnswered(asked.ask, tuple(25.0 if is_apart else 8.0 for is_apart in apart)), bench.now)
    bench.run(Phase(5, 20, 2000, 250, spread=0.2))
    assert "2 prefill, 2 decode" in bench.of_kind(DecisionKind.ADVICE)[len(before)].reason


def test_a_stale_answer_is_ignored_and_without_one_the_formulas_decide() -> None:
    bench = asked_bench()
    asked = bench.asked[0]
    bench.scheduler.handle(WhatIfAnswered(asked.ask + 7, (0.0,) * len(asked.candidates)), bench.now)
    bench.scheduler.handle(WhatIfAnswered(asked.ask - 1, (0.0,) * len(asked.candidates)), bench.now)
    assert bench.controller.replays.num_stale == 2
    asked_at = bench.now
    bench.run(Phase(20, 20, 2000, 250, spread=0.2))
    assert bench.changed_at
    assert bench.changed_at[0] - asked_at <= ReplayConfig().patience_s + 3.0


def test_an_answer_to_what_was_before_the_nodes_changed_is_stale() -> None:
    bench = asked_bench()
    asked = bench.asked[0]
    bench.join("n4@0", "mixed")
    bench.run(Phase(1, 20, 2000, 250, spread=0.2))
    bench.scheduler.handle(WhatIfAnswered(asked.ask, (9.0,) * len(asked.candidates)), bench.now)
    assert bench.controller.replays.num_stale == 1
