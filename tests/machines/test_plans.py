"""What one node can do by formula, held against a table of published experiments, and what layouts do with a load."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.costs import NodeCosts
from core.ids import NodeId
from core.mix import mix_of
from core.request import SLO
from scheduler.closed_forms import (
    Load,
    NodeAbility,
    decode_rate_by_pool,
    decode_rate_by_tpot,
    prefill_rate_alone,
    prefill_rate_batched,
    prefill_rate_by_ttft,
)
from scheduler.layouts import Floors, Option, PlanNode, Search
from scheduler.plans import ChunkStep, Forecaster, Goal, Part

COSTS = NodeCosts(0.004, 0.0045, 2e-5, 4e-10, 2e-6, 3e-8)
"""Near an 8 B model on one large GPU."""

PROMPTS = (100, 200, 400, 700, 1000, 1500, 2500, 5000)
ANSWERS = (10, 40, 90, 150, 220, 300, 420, 700)


def fitted(prefill: tuple[float, float, float], decode: tuple[float, float, float]) -> NodeCosts:
    """Published fits, in ms: prefill a + b·ΣL + c·ΣL², decode a + b·Σcontext + c·batch."""
    (a, b, c), (x, y, z) = prefill, decode
    return NodeCosts(a / 1e3, x / 1e3, b / 1e3, 2 * c / 1e3, z / 1e3, y / 1e3)


OPT_13B = fitted((14.743, 0.068577, 2.4496e-6), (19.935, 6.2694e-4, 0.038507))
OPT_66B = fitted((29.442, 0.151352, 8.3175e-6), (48.288, 9.4243e-4, 0.127550))
OPT_66B_MANY_ROWS = fitted((29.442, 0.151352, 8.3175e-6), (28.728, 4.7448e-4, 0.296178))
"""LLMServe/DistServe, A100-80G: prefill at TP2 and TP4, decode at TP1 and TP2."""

CELLS = {  # lengths, TTFT, TPOT, costs, pool, pipeline stages of decode, GPUs; then the table's req/s per GPU
    "13B ShareGPT": ((755.5, 200.3), 0.25, 0.10, OPT_13B, 66_144, 1, 3, (2.32, 2.00, 4.9, 6.3, 3.2)),
    "66B ShareGPT": ((755.5, 200.3), 2.5, 0.15, OPT_66B, 78_512, 2, 8, (0.91, 0.63, 0.84, 1.05, 0.78)),
    "66B HumanEval": ((171.3, 98.2), 0.125, 0.20, OPT_66B_MANY_ROWS, 78_512, 2, 8, (5.4, 4.5, 2.2, 4.8, 0.95)),
    "66B LongBench": ((1738.3, 90.7), 15.0, 0.15, OPT_66B, 78_512, 2, 8, (1.03, 0.69, 0.39, 0.43, 0.38)),
}


@pytest.mark.parametrize("cell", CELLS)
def test_rates_by_formula_are_those_of_the_published_cells(cell: str) -> None:
    (prompt, answer), ttft_s, tpot_s, costs, pool, stages, num_gpus, expected = CELLS[cell]
    load = Load(1.0, (prompt,), (answer,))  # type: ignore[arg-type]  # the published means are no whole numbers
    node = NodeAbility(costs, pool, 10**9, 8192, stages)
    found = (
        decode_rate_by_tpot(node, load, tpot_s),
        decode_rate_by_pool(node, load),
        prefill_rate_alone(node, load),
        prefill_rate_batched(node, load),
        prefill_rate_by_ttft(node, load, ttft_s, 0.9),
    )
    assert [rate / num_gpus for rate in found] == pytest.approx(expected, rel=0.05)


def ability(speed: float = 1.0, chunk: int = 2048) -> NodeAbility:
    """A node `speed` times as fast as `COSTS` say."""
    costs = NodeCosts(*(value / speed for value in (0.004, 0.0045, 2e-5, 4e-10, 2e-6, 3e-8)))
    return NodeAbility(costs, 800_000, 256, chunk)


def nodes(*abilities: NodeAbility, role: str = "mixed") -> list[PlanNode]:
    """Nodes that all accept the same now."""
    mixes = [mix_of(role, each.max_prefill_tokens, each.max_rows) for each in abilities]
    return [PlanNode(NodeId(f"n{i}"), each, mix) for i, (each, mix) in enumerate(zip(abilities, mixes, strict=True))]


def search(of: list[PlanNode], rate: float, slo: SLO, floors: Floors = Floors()) -> list[Option]:  # noqa: B008
    """All options for the usual lengths."""
    return Search(of, Forecaster(Load(rate, PROMPTS, ANSWERS), Goal(slo)), floors).options()


def best_of(options: list[Option], kind: str) -> float:
    """The best goodput among one kind of layouts."""
    return max(option.forecast.goodput_rps for option in options if option.kind == kind)


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(2, 9),
    rate=st.floats(0.2, 400.0),
    ttft_s=st.floats(0.02, 5.0),
    tpot_s=st.floats(0.003, 0.2),
    slow=st.floats(0.3, 1.0),
)
def test_nothing_is_chosen_that_is_worse_than_all_together_or_all_apart(
    num: int, rate: float, ttft_s: float, tpot_s: float, slow: float
) -> None:
    options = search(nodes(*(ability(slow if i % 2 else 1.0) for i in range(num))), rate, SLO(ttft_s, tpot_s))
    best = options[0].forecast.goodput_rps
    assert best >= max(best_of(options, "aggregated"), best_of(options, "disaggregated"))
    for option in options:
        assert 0.0 <= option.forecast.goodput_rps <= rate * (1 + 1e-9)
        assert 0.0 <= option.forecast.attainment <= 1.0 + 1e-9
        assert any(mix.accepts_prefill for mix in option.mixes)
        assert any(mix.accepts_decode for mix in option.mixes)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.2, 200.0), ttft_s=st.floats(0.05, 5.0), tpot_s=st.floats(0.003, 0.2), chunk=st.integers(32, 2048)
)
def test_who_may_prefill_what_others_would_be_late_with_serves_no_less_than_who_only_decodes(
    rate: float, ttft_s: float, tpot_s: float, chunk: int
) -> None:
    forecaster = Forecaster(Load(rate, PROMPTS, ANSWERS), Goal(SLO(ttft_s, tpot_s)))
    prefill = Part("prefill", ability(), 2048, 2)
    apart = forecaster.forecast([prefill, Part("decode", ability(), 2048, 2)])
    beside = forecaster.forecast([prefill, Part("mixed", ability(), chunk, 2)])
    assert beside.attainment >= apart.attainment - 1e-4


def test_mixed_nodes_take_the_prompts_that_nodes_which_only_prefill_would_be_late_with() -> None:
    forecaster = Forecaster(Load(30.0, PROMPTS, ANSWERS), Goal(SLO(0.25, 0.05)))
    prefill = Part("prefill", ability(), 2048, 1)
    apart = forecaster.forecast([prefill, Part("decode", ability(), 2048, 2)])
    beside = forecaster.forecast([prefill, Part("mixed", ability(), 512, 2)])
    assert beside.attainment > apart.attainment + 0.1


def test_a_strict_pace_wants_phases_apart_and_a_strict_first_token_wants_them_together() -> None:
    strict_pace = search(nodes(*[ability()] * 4), 52.0, SLO(2.0, 0.01))
    assert best_of(strict_pace, "disaggregated") > 1.05 * best_of(strict_pace, "aggregated")
    strict_start = search(nodes(*[ability()] * 2), 26.0, SLO(0.2, 0.05))
    assert best_of(strict_start, "aggregated") > 1.05 * best_of(strict_start, "disaggregated")


def test_more_prompt_wants_more_nodes_that_prefill() -> None:
    def num_prefill(prompt: int, answer: int) -> int:
        load = Load(1e6, (prompt,), (answer,))
        options = Search(nodes(*[ability()] * 9), Forecaster(load, Goal(SLO(2.0, 0.01)))).options()
        best = next(option for option in options if option.kind == "disaggregated")
        return sum(mix.role == "prefill" for mix in best.mixes)

    found = [num_prefill(*lengths) for lengths in ((8000, 100), (2000, 200), (500, 500), (100, 2000))]
    assert found == sorted(found, reverse=True)
    assert found[0] >= 7
    assert found[-1] == 1


def test_the_node_that_prefills_best_prefills() -> None:
    """One node has cheap steps of rows, the other cheap prompt tokens; prices of the whole are about the same."""
    decodes = replace(ability(), costs=replace(COSTS, per_prefill_token_s=6e-5, decode_fixed_s=0.003))
    prefills = replace(ability(), costs=replace(COSTS, per_prefill_token_s=1e-5, decode_fixed_s=0.008))
    options = search(nodes(decodes, prefills), 20.0, SLO(1.0, 0.02))
    best = next(option for option in options if option.kind == "disaggregated")
    assert [mix.role for mix in best.mixes] == ["decode", "prefill"]


def test_equal_nodes_keep_their_roles() -> None:
    of = nodes(*[ability()] * 4, role="decode")
    of[2] = replace(of[2], mix=mix_of("prefill", 2048, 256))
    best = next(o for o in search(of, 40.0, SLO(1.0, 0.01), Floors(1, 3)) if o.kind == "disaggregated")
    assert [mix.role for mix in best.mixes] == ["decode", "decode", "prefill", "decode"]


def test_a_node_that_may_not_be_changed_keeps_its_mix_and_counts() -> None:
    of = nodes(*[ability()] * 4)
    of[0] = replace(of[0], mix=mix_of("decode", 2048, 256), is_free=False)
    for option in search(of, 40.0, SLO(1.0, 0.01)):
        assert option.mixes[0].role == "decode"


def test_floors_hold() -> None:
    for option in search(nodes(*[ability()] * 6), 60.0, SLO(1.0, 0.01), Floors(2, 3)):
        if option.kind != "aggregated":
            assert sum(mix.accepts_prefill for mix in option.mixes) >= 2
            assert sum(mix.accepts_decode for mix in option.mixes) >= 3


def test_small_chunks_keep_the_pace_until_their_fixed_price_is_too_much() -> None:
    def attained(rate: float, chunk: int) -> float:
        forecaster = Forecaster(Load(rate, PROMPTS, ANSWERS), Goal(SLO(2.0, 0.006)))
        return forecaster.forecast([Part("mixed", ability(), chunk, 4)]).attainment

    assert attained(10.0, 64) > attained(10.0, 2048) + 0.01
    assert attained(30.0, 64) < attained(30.0, 2048) - 0.1


@settings(max_examples=60, deadline=None)
@given(
    overlap=st.floats(0, 1),
    rows=st.floats(0, 1.2),
    rate=st.floats(0.01, 8),
    fixed=st.tuples(*[st.floats(0.001, 0.02)] * 2),
)
def test_the_mean_mixed_step_is_what_such_steps_take(
    overlap: float, rows: float, rate: float, fixed: tuple[float, float]
) -> None:
    costs = NodeCosts(*fixed, 2e-5, 4e-10, 2e-6, 3e-8, overlap)
    step = ChunkStep.of(NodeAbility(costs, 800_000, 256, 256), Load(1.0, PROMPTS, ANSWERS), 256)
    mean_s = step.step_s(costs.decode_fixed_s, rate, rows)
    if mean_s == math.inf:
        assert rows + rate * step.num * step.more_s * (1 - overlap) > 1.0 - 1e-9 or overlap < 1.0
        return
    rows_s = rows * mean_s
    again_s = costs.decode_fixed_s + rows_s + rate * step.num * mean_s * step.longer_s(rows_s)
    assert again_s == pytest.approx(mean_s, rel=1e-6)


def test_small_chunks_are_forecast_to_serve_more_where_they_hide_behind_the_rows() -> None:
    load, goal = Load(8.0, (4000,) * 8, (300,) * 8), Goal(SLO(2.0, 0.02))
    found = []
    for overlap in (0.0, 1.0):
        node = replace(ability(), costs=replace(ability().costs, overlap=overlap))
        found.append(Forecaster(load, goal).forecast([Part("mixed", node, 256, 2)]).attainment)
    assert found[0] < found[1]
