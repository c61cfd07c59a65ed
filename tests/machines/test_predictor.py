"""Predictions against sums by hand, and the quick search against the plain definition."""

from dataclasses import replace
from math import exp, inf
from random import Random

import pytest

from core.costs import StepWork
from core.ids import AttemptId, NodeId
from core.request import SLO
from core.stats import Timing
from scheduler.pair import Pair, harm
from scheduler.view import Booking, ClusterView
from tests.machines.seen import (
    CONFIG,
    COSTS,
    KEYS,
    demand_of,
    node,
    prove,
    put_prompt,
    put_rows,
    report,
    request_of,
    spec_of,
    view_of,
)

COSTS_WORK = StepWork(1, 1, 512, 512 * 256.0, 1, 1000)


def predicted(
    view: ClusterView, prefill: int, decode: int, num_tokens: int, now: float = 0.0, **request: object
) -> Pair:
    """For a prompt of so many tokens and an answer of 100."""
    demand = demand_of(request_of(num_tokens, **request))  # type: ignore[arg-type]
    return view.predictor.pair(demand, node(view, prefill), node(view, decode), now)


def test_an_idle_pair_takes_what_the_prompt_and_the_handoff_take() -> None:
    view = view_of("prefill", "decode")
    guessed = predicted(view, 0, 1, 1024)
    node(view, 1).num_handoffs = 1
    pair = predicted(view, 0, 1, 1024)
    assert pair.queue_s == 0.0
    assert pair.prefill_s == pytest.approx(2 * 0.010 + 1024 * 1e-4 + 1024 * 512 * 1e-7), "two chunks of 512"
    assert pair.handoff_s == pytest.approx(0.001 + 512 * 8 / 1e6), "the last chunk; the first went before"
    step_s = 0.008 + 2e-4 + (1024 + 50) * 1e-6
    assert pair.tpot_s == pytest.approx(step_s + pair.handoff_s / 99)
    assert guessed.handoff_s == pair.handoff_s and guessed.tpot_s == step_s, "what is only guessed harms nobody"
    assert pair.slack > 0 and pair.moves


def test_a_short_prompt_takes_a_whole_step() -> None:
    pair = predicted(view_of("prefill", "decode"), 0, 1, 10)
    assert pair.prefill_s == pytest.approx(0.010 + 10 * 1e-4 + 50 * 1e-7)


def test_what_waits_before_it_is_computed_first() -> None:
    view = view_of("prefill", "decode")
    put_prompt(view, 0, 2048)
    pair = predicted(view, 0, 1, 512)
    assert pair.queue_s == pytest.approx(4 * 0.010 + 2048 * 1e-4 + 2048 * 1024 * 1e-7)
    assert predicted(view, 0, 1, 512, 0.1).queue_s == pytest.approx(pair.queue_s - 0.1), "time passes"
    assert predicted(view, 0, 1, 512, 9.9).queue_s == 0.0


def test_a_report_says_how_much_still_waits() -> None:
    view = view_of("prefill", "decode")
    put_prompt(view, 0, 2048)
    view.believe(NodeId("n0"), report(COSTS_WORK, COSTS.seconds(COSTS_WORK), queued_tokens=512), 1.0)
    queued = predicted(view, 0, 1, 512, 1.0).queue_s
    assert queued == pytest.approx(0.010 + 512 * 1e-4 + 512 * 1024 * 1e-7), "as long as prompts that are booked"
    view.believe(NodeId("n0"), report(COSTS_WORK, COSTS.seconds(COSTS_WORK)), 2.0)
    assert predicted(view, 0, 1, 512, 2.0).queue_s == 0.0


def test_a_prefix_that_a_node_holds_is_not_computed_there() -> None:
    view = view_of("prefill", "prefill", "decode")
    demand = demand_of(request_of(1024, keys=KEYS[:64]))
    view.prefixes.add(NodeId("n0"), demand.prefixes[:4])
    here, there = (view.predictor.pair(demand, node(view, i), node(view, 2), 0.0) for i in (0, 1))
    assert (here.hit_tokens, here.num_tokens, there.hit_tokens) == (512, 512, 0)
    assert here.pairs == 512 * (512 + 256)
    assert here.prefill_s == pytest.approx(0.010 + 512 * 1e-4 + here.pairs * 1e-7)
    best = view.predictor.best(demand, 0.0)
    assert best is not None and best.prefill is node(view, 0)


def test_the_last_token_is_always_computed() -> None:
    view = view_of("prefill", "decode")
    demand = demand_of(request_of(1024, keys=KEYS[:64]))
    view.prefixes.add(NodeId("n0"), demand.prefixes)
    assert view.predictor.pair(demand, node(view, 0), node(view, 1), 0.0).num_tokens == 1


def test_nothing_moves_where_one_node_does_both() -> None:
    pair = predicted(view_of("mixed"), 0, 0, 512)
    assert pair.handoff_s == 0.0 and not pair.moves


def test_rows_slow_the_prefill_beside_them_and_it_slows_them() -> None:
    view = view_of("mixed")
    put_rows(view, 0, 20, tpot_s=0.05)
    rows_s = 20 * (2e-4 + 1000 * 1e-6)
    pair = predicted(view, 0, 0, 1024)
    assert pair.queue_s == pytest.approx((0.008 + rows_s) / 2), "half a step that is running"
    assert pair.prefill_s == pytest.approx(2 * (0.010 + rows_s) + 1024 * 1e-4 + 1024 * 512 * 1e-7)
    seen = node(view, 0)
    stay = seen.answer_s / (seen.answer_s + pair.ttft_s)
    step_s = 0.008 + rows_s * stay + 2e-4 + 1074 * 1e-6
    assert pair.tpot_s == pytest.approx(step_s), "some of the rows will have ended when the prefill ends"
    added_s = 1024 * 1e-4 + 1024 * 512 * 1e-7 + 2 * (0.010 - 0.008)
    assert pair.residents_s == pytest.approx(step_s / (1 - added_s / seen.window_s)), "the rows there bear the prompt"


def test_prompts_of_late_weigh_on_rows_and_fade() -> None:
    view = view_of("mixed")
    put_rows(view, 0, 4)
    alone_s = predicted(view, 0, 0, 100, 50.0).tpot_s
    put_prompt(view, 0, 4096, now=50.0)
    view.refresh()
    seen = node(view, 0)
    step_s = seen.step_s(150, 0.0)
    added_s = 4096 * 1e-4 + 4096 * 2048 * 1e-7 + 8 * 0.002
    for later_s in (0.0, 3.0, 12.0):
        load = added_s * exp(-later_s / seen.window_s) / seen.window_s
        assert seen.slowed(step_s, 50.0 + later_s) == pytest.approx(step_s / (1 - load))
    assert predicted(view, 0, 0, 100, 400.0).tpot_s == pytest.approx(alone_s, rel=1e-3)


def test_reports_correct_predictions() -> None:
    view = view_of("prefill", "decode")
    before = predicted(view, 0, 1, 1024)
    assert not before.is_proven
    prove(view, factor=1.5)
    after = predicted(view, 0, 1, 1024)
    assert after.is_proven
    assert after.prefill_s == pytest.approx(1.5 * before.prefill_s, rel=0.06)


def test_requests_that_end_teach_how_far_off_predictions_are() -> None:
    view = view_of("prefill", "decode")
    demand = demand_of(request_of(1024))
    handoff_s = predicted(view, 0, 1, 1024).handoff_s
    for i in range(100):
        pair = view.predictor.pair(demand, node(view, 0), node(view, 1), 0.0)
        expected = view.predictor.expect(demand, pair, 0.6)
        timing = Timing(queue_prefill_s=0.3, prefill_s=0.48, handoff_s=3 * handoff_s, decode_s=99 * pair.tpot_s)
        view.predictor.learn(expected, timing, 100, i / 10)
    assert view.predictor.ttft.safety == pytest.approx(0.3, abs=0.01)
    assert node(view, 1).handoff_factor == pytest.approx(3.0), "whatever was believed in between"


def test_a_handoff_waits_for_those_before_it() -> None:
    view = view_of("prefill", "decode")
    demand = demand_of(request_of(1024))
    pairs = []
    for _ in range(3):
        pair = view.predictor.pair(demand, node(view, 0), node(view, 1), 0.0)
        view.predictor.book_handoff(demand, pair, 0.0)
        pairs.append(pair)
    all_s = 1024 * 8 / 1e6
    free = [predicted(view, 0, 1, 1024, now).handoff_s for now in (0.0, 1.0)]
    assert free[0] == pytest.approx(max(pairs[0].handoff_s, 3 * all_s - pairs[0].ttft_s + 0.001 + all_s))
    assert free[1] == pairs[0].handoff_s, "time passes"


def test_what_waited_for_its_link_says_only_that_it_is_no_slower() -> None:
    view = view_of("prefill", "decode")
    demand = demand_of(request_of(1024))
    pair = view.predictor.pair(demand, node(view, 0), node(view, 1), 0.0)
    alone = view.predictor.expect(demand, pair, 0.6)
    view.predictor.learn(alone, Timing(handoff_s=2 * pair.handoff_s, decode_s=1.0), 100, 0.0)
    for factor, expected in ((9.0, 2.0), (1.0, 1.5)):
        waits = replace(alone, waits_for_link=True)
        view.predictor.learn(waits, Timing(handoff_s=factor * pair.handoff_s, decode_s=1.0), 100, 0.0)
        assert node(view, 1).handoff_factor == pytest.approx(expected)


def test_a_row_that_others_joined_within_what_was_promised_is_no_error() -> None:
    view = view_of("prefill", "decode")
    demand = demand_of(request_of(100, slo=SLO(1.0, 0.05)))
    expected = view.predictor.expect(demand, view.predictor.pair(demand, node(view, 0), node(view, 1), 0.0), 0.1)
    put_rows(view, 1, 25, context=1000)
    view.refresh()
    for i in range(60):
        view.predictor.learn(expected, Timing(decode_s=99 * node(view, 1).decode_s), 100, i / 10)
    assert view.predictor.tpot.safety < 0.05


def random_view(chance: Random) -> ClusterView:
    """Some nodes of all roles under some load."""
    roles = [chance.choice(("prefill", "decode", "mixed")) for _ in range(chance.randint(1, 5))]
    view = view_of("prefill", "decode", *roles, budget=chance.choice((64, 512, 2048)))
    for number in range(len(roles) + 2):
        mix = node(view, number).mix
        if mix.accepts_decode:
            put_rows(
                view, number, chance.randint(0, 20), context=chance.randint(10, 3000), tpot_s=chance.choice((0.03, 0.1))
            )
        for _ in range(chance.randint(0, 3) if mix.accepts_prefill else 0):
            put_prompt(view, number, chance.randint(10, 3000), now=chance.random())
        if chance.random() < 0.5:
            view.prefixes.add(NodeId(f"n{number}"), KEYS[7::8][: chance.randint(1, 12)])
    return view


@pytest.mark.parametrize("seed", range(60))
def test_the_search_says_of_its_pair_what_the_definition_says(seed: int) -> None:
    chance = Random(seed)
    view = random_view(chance)
    keys = KEYS[: chance.randint(0, 100)]
    slo = chance.choice((None, SLO(0.5, 0.02), SLO(5.0, 0.1)))
    demand = demand_of(request_of(len(keys) * 16 + 5, keys=keys, slo=slo), waited_s=chance.random())
    now = 1.0 + chance.random()
    found = view.predictor.best(demand, now)
    assert found is not None
    plain = view.predictor.pair(demand, found.prefill, found.decode, now, found.after_s)
    for name in ("hit_tokens", "num_tokens", "pairs", "queue_s", "handoff_s", "tpot_s", "residents_s", "slack"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name), rel=1e-9, abs=1e-12), name
    assert found.prefill_s == pytest.approx(plain.prefill_s, rel=1e-9, abs=1e-12)
    assert found.score == pytest.approx(plain.score, rel=1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_among_few_nodes_it_finds_the_best_pair_or_one_as_good(seed: int) -> None:
    view = random_view(Random(seed))
    demand = demand_of(request_of(700), avoid=frozenset({NodeId("nowhere")}))
    found = view.predictor.best(demand, 1.0)
    prefills = [each for each in view.nodes.values() if each.mix.accepts_prefill]
    decodes = [each for each in view.nodes.values() if each.mix.accepts_decode]
    assert found is not None
    scores = [view.predictor.pair(demand, p, d, 1.0, found.after_s).score for p in prefills for d in decodes]
    assert found.score == pytest.approx(max(scores), rel=1e-9)
    quick = view.predictor.best(demand_of(request_of(700)), 1.0)
    assert quick is not None and quick.score >= max(scores) - 0.02, (
        "looking at the first few only costs next to nothing"
    )


def test_rows_near_their_limit_count_each_as_much_as_the_request() -> None:
    view = view_of("prefill", "mixed")
    put_rows(view, 1, 20, tpot_s=0.04)
    put_prompt(view, 0, 2048)
    demand = demand_of(request_of(512, slo=SLO(0.635, 0.04)))
    there, beside = (view.predictor.pair(demand, node(view, i), node(view, 1), 0.0) for i in (0, 1))
    assert min(beside.slack, beside.tpot_slack) > there.slack > 0.0, "the queue leaves less than rows would have left"
    best = view.predictor.best(demand, 0.0)
    assert best is not None and best.prefill is node(view, 0), "twenty rows are not slowed for that"


def test_rows_far_from_their_limit_lose_nothing() -> None:
    assert harm(20, 0.5, 0.1) == 0.0
    assert harm(20, 0.3, 0.05) == pytest.approx(20 * 0.05)
    assert harm(20, -0.05, -0.4) == pytest.approx(20 * 0.05), "who has missed it misses no more"
    assert harm(20, -0.2, -0.4) == 0.0
    assert harm(20, inf, inf) == 0.0


def test_nodes_without_room_are_not_looked_at() -> None:
    view = view_of("prefill", "decode", "decode")
    put_rows(view, 1, 64)
    best = view.predictor.best(demand_of(request_of(100)), 0.0)
    assert best is not None and best.decode is node(view, 2)
    view.book(AttemptId("x#0"), NodeId("n0"), Booking(3999, 0, 0), 0.0)
    assert view.predictor.best(demand_of(request_of(100)), 0.0) is None


def test_beside_rows_a_small_chunk_hides_as_far_as_the_costs_say() -> None:
    found = []
    for overlap in (0.0, 0.5, 1.0):
        view = ClusterView(CONFIG)
        view.join(NodeId("n0"), spec_of("mixed", budget=64, costs=replace(COSTS, overlap=overlap)))
        alone = node(view, 0).delay_s(64, 64 * 32.0)
        put_rows(view, 0, 60, context=1000)
        view.refresh()
        found.append((alone, node(view, 0).delay_s(64, 64 * 32.0), node(view, 0).prefill_s(64, 64 * 32.0)))
    rows_s, prompt_s = 60 * 2e-4 + 60_000 * 1e-6, 64 * 1e-4 + 2048 * 1e-7
    for overlap, (alone_s, beside_s, whole_s) in zip((0.0, 0.5, 1.0), found, strict=True):
        costs = replace(COSTS, overlap=overlap)
        assert alone_s == pytest.approx(costs.mixed_s(prompt_s, 0.0) - 0.008)
        assert whole_s == pytest.approx(costs.mixed_s(prompt_s, rows_s))
        assert beside_s == pytest.approx(costs.mixed_s(prompt_s, rows_s) - 0.008 - rows_s)
    assert found[2][1] == pytest.approx(0.0), "the rows take longer than the chunk"


def test_errors_of_before_a_change_of_mixes_are_forgotten_and_no_more_are_learned() -> None:
    view = view_of("prefill", "decode")
    demand = demand_of(request_of(1024))
    pair = view.predictor.pair(demand, node(view, 0), node(view, 1), 0.0)
    before = view.predictor.expect(demand, pair, pair.ttft_s)
    late = Timing(queue_prefill_s=5.0, prefill_s=1.0, decode_s=20.0)
    for _ in range(20):
        view.predictor.learn(before, late, 100, 1.0)
    assert view.predictor.ttft.safety == 1.0 and view.predictor.tpot.safety == 1.0
    view.era += 1
    view.predictor.learn(before, late, 100, 2.0)
    usual = view_of("prefill").predictor
    assert (view.predictor.ttft.safety, view.predictor.tpot.safety) == (usual.ttft.safety, usual.tpot.safety)
    view.predictor.learn(view.predictor.expect(demand, pair, pair.ttft_s), late, 100, 3.0)
    assert view.predictor.ttft.safety > usual.ttft.safety
