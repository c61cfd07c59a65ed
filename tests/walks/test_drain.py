"""Walk: a node is to be empty.

1. The operator asks (`DrainAsked`); the node's mix is closed, so nothing new comes.
2. Its rows go to nodes that decode, a few at a time, booked there first; what it prefills is handed off as ever.
3. Where nobody can take a row it finishes in place.
4. When the node has nothing left, the operator is told (`Drained`).
"""

import pytest

from cluster.simulated.chaos import CALM_S
from cluster.simulated.checks import check_end
from cluster.simulated.costs import Costs
from cluster.simulated.report import report_of
from cluster.simulated.scenario import Arrival, NodePlan, Scenario, make_request
from cluster.simulated.watch import Deed
from cluster.simulated.world import World
from core.events import AttemptLost, Drained, MigrateAsked, Overridden, Submitted, TokensEmitted
from core.goodput import Outcome
from core.ids import SCHEDULER
from core.mix import mix_of
from core.request import SLO
from tests.walks.stage import GATEWAY, Stage, decode_node, prefill_node
from tests.walks.test_migration import drain


def test_a_node_with_many_rows_is_emptied_a_few_at_a_time_and_nobody_begins_anew() -> None:
    stage = Stage(prefill_node(num_blocks=64), decode_node("d", 64, 12), decode_node("e", 96, 12))
    requests = [stage.ask(f"r{i}", 6, max_tokens=24, first_token=i) for i in range(12)]
    stage.once(TokensEmitted, lambda _: drain(stage, "d"), times=30)
    stage.until(lambda: bool(stage.world.drained))
    assert stage.world.drained == [Drained(stage.host("d").node, 0)]
    assert stage.host("d").machine.is_idle()
    assert stage.host("d").machine.stats().num_migrated > 2
    assert any(stage.answer(request).ended is None for request in requests), "it was empty before the answers were"
    stage.end()
    assert all(len(stage.answer(request).token_ids) == 24 for request in requests)
    assert (stage.num_seen(Submitted), stage.num_seen(AttemptLost)) == (12, 0)


def test_a_node_of_both_kinds_finishes_its_prompts_and_its_rows_go() -> None:
    both = [NodePlan(name, "mixed", 64, 4, 8) for name in ("a", "b")]
    stage = Stage(*both)
    requests = [stage.ask(f"r{i}", 10, max_tokens=24, first_token=i) for i in range(6)]
    stage.once(Submitted, lambda _: drain(stage, "a"), times=6)
    stage.until(lambda: bool(stage.world.drained))
    assert stage.host("a").machine.is_idle()
    assert stage.host("a").machine.stats().num_prompt_tokens > 0
    stage.end()
    assert all(len(stage.answer(request).token_ids) == 24 for request in requests)
    assert stage.num_seen(AttemptLost) == 0


def test_where_nobody_can_take_its_rows_they_finish_in_place() -> None:
    stage = Stage(prefill_node(), decode_node("d"), decode_node("e", num_blocks=4))
    request = stage.ask("r", 10, max_tokens=12)
    stage.once(TokensEmitted, lambda _: drain(stage, "d"), times=3)
    stage.end()
    assert len(stage.answer(request).token_ids) == 12
    assert stage.num_seen(MigrateAsked) == 0
    assert stage.world.drained == [Drained(stage.host("d").node, 0)]


def test_the_last_decode_node_may_drain_too_and_a_prefill_node_takes_over() -> None:
    stage = Stage(prefill_node(), decode_node("d"))
    request = stage.ask("r", 10, max_tokens=20)
    stage.once(TokensEmitted, lambda _: drain(stage, "d"), times=3)
    stage.end()
    assert len(stage.answer(request).token_ids) == 20
    assert stage.host("d").machine.stats().num_migrated == 1
    assert stage.num_seen(AttemptLost) == 0


def test_saved_rows_go_when_they_are_back() -> None:
    plans = [
        NodePlan(name, "decode", 7 if name == "d" else 40, 8, 8, max_saved_blocks=14, copy_s_per_block=0.0001)
        for name in "de"
    ]
    stage = Stage(prefill_node(num_blocks=64), *plans, overcommit=True)
    stage.world.tell(SCHEDULER, Overridden((stage.host("e").node,), (mix_of("closed", 8, 8),)))
    requests = [stage.ask(f"r{i}", 6, max_tokens=16, first_token=i) for i in range(3)]
    stage.until(lambda: stage.host("d").machine.decode.num_saved_blocks > 0)
    stage.world.tell(SCHEDULER, Overridden((stage.host("e").node,), (mix_of("decode", 8, 8),)))
    drain(stage, "d")
    stage.end()
    assert all(len(stage.answer(request).token_ids) == 16 for request in requests)
    assert stage.host("d").machine.stats().num_migrated > 0
    assert stage.num_seen(AttemptLost) == 0


ROUND_S = 0.1
NUM_TOKENS = 64
NUM_QUICK, NUM_SLOW = 60, 1000


def rolling(num_requests: int, steps_in_flight: int) -> World:
    """One node after the other is drained and opened again, as in a rolling upgrade, under as many streams as fit."""
    nodes = tuple(
        [NodePlan(f"p{i}", "prefill", 128, 32) for i in range(2)]
        + [NodePlan(f"d{i}", "decode", 512, 8, 32, steps_in_flight, max_draft_tokens=2 * i) for i in range(3)]
    )
    prompts = [[1 + (i * 7 + j) % 60 for j in range(5 + i % 7)] for i in range(num_requests)]
    arrivals = tuple(
        Arrival(0.01 * i, GATEWAY, make_request(f"r{i}", prompt, NUM_TOKENS, seed=i, ignore_eos=True))
        for i, prompt in enumerate(prompts)
    )
    world = World(Scenario(7, nodes, arrivals, max_model_len=128, costs=Costs(jitter=0.5), by_hand=True))

    def turn(number: int) -> None:
        hosts = [host for host in world.alive() if host.plan.role == "decode"]
        for host in hosts:
            mix = host.machine.config.mix
            world.tell(SCHEDULER, Overridden((host.node,), (mix,)))
        world.drain(hosts[number % len(hosts)].node)
        if any(door.streams.num_open for door in world.doors.values()):
            world.loop.after(ROUND_S, turn, number + 1)

    world.loop.at(0.3, turn, 0)
    return world


def assert_moved_without_loss(world: World, at_least: int) -> None:
    """All answers are whole and right, each of one attempt, and so many rows were moved."""
    world.run(1.0, CALM_S)
    check_end(world)
    report = report_of(world, SLO(1.0, 0.1))
    assert report.outcomes == {Outcome.FINISHED: report.num_requests}
    assert report.num_attempts == report.num_requests, "nothing was computed twice"
    assert report.num_tokens == NUM_TOKENS * report.num_requests
    assert report.faults[Deed.MIGRATED] >= at_least, report.faults


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_nodes_that_drain_in_turn_under_load_lose_and_repeat_no_token(steps_in_flight: int) -> None:
    assert_moved_without_loss(rolling(NUM_QUICK, steps_in_flight), 50)


@pytest.mark.slow
def test_a_thousand_migrations_under_load_lose_and_repeat_no_token() -> None:
    assert_moved_without_loss(rolling(NUM_SLOW, 2), 1000)
