"""Prices of steps: what hides in a mixed step, and how much of it fits what was measured."""

from dataclasses import replace

import pytest

from core.costs import NodeCosts, StepWork, with_overlap, with_prefill_curve

APART = NodeCosts(0.010, 0.008, 5e-5, 1e-9, 1e-4, 4e-7)
MIXED = [(p / 1000, r / 1000) for p in (1, 5, 20, 80) for r in (1, 6, 30)]


def overlapping(overlap: float) -> NodeCosts:
    """The same prices."""
    return with_overlap(APART, [(p, r, 0.010 + p + r - overlap * APART.hidden_s(p, r)) for p, r in MIXED])


@pytest.mark.parametrize("overlap", [0.0, 0.3, 1.0])
def test_the_overlap_is_found_in_mixed_steps(overlap: float) -> None:
    assert overlapping(overlap).overlap == pytest.approx(overlap, abs=1e-9)


def test_without_overlap_parts_add_up_and_the_larger_fixed_price_is_paid_once() -> None:
    assert APART.mixed_s(0.005, 0.003) == pytest.approx(0.010 + 0.005 + 0.003)
    assert APART.prefill_s(0.001) == pytest.approx(0.011)


@pytest.mark.parametrize(("prompts_s", "rows_s"), [(0.001, 0.02), (0.03, 0.002), (0.0, 0.0)])
def test_at_full_overlap_a_mixed_step_takes_as_long_as_the_longer_one_alone(prompts_s: float, rows_s: float) -> None:
    for fixed in ((0.010, 0.008), (0.001, 0.008)):
        costs = NodeCosts(*fixed, 5e-5, 1e-9, 1e-4, 4e-7, 1.0)
        assert costs.mixed_s(prompts_s, rows_s) == pytest.approx(max(fixed[0] + prompts_s, fixed[1] + rows_s))
        assert costs.prefill_s(prompts_s) == pytest.approx(max(fixed[0] + prompts_s, fixed[1]))


def test_steps_that_never_gain_have_no_overlap_and_none_is_above_one() -> None:
    assert with_overlap(APART, [(0.005, 0.003, 0.030)]).overlap == 0.0
    assert with_overlap(APART, [(0.005, 0.003, 0.001)]).overlap == 1.0
    assert with_overlap(APART, []).overlap == 0.0


def test_many_mixed_steps_together_cost_what_each_costs() -> None:
    costs = NodeCosts(0.010, 0.008, 5e-5, 1e-9, 1e-4, 4e-7, 0.7)
    one = StepWork(1, 0, 256, 256 * 1000.0, 20, 20 * 800, 1, 20, 20 * 800)
    work = StepWork()
    for _ in range(5):
        work = work.plus(one)
    prompts_s, rows_s = 256 * 5e-5 + 256_000 * 1e-9, 20 * 1e-4 + 16_000 * 4e-7
    assert costs.seconds(work) == pytest.approx(5 * costs.mixed_s(prompts_s, rows_s))
    assert work.minus(one).plus(one) == work


CURVE = ((64, 0.002), (512, 0.002), (1024, 0.010), (8192, 0.130))
"""What prompt tokens add to a step of an 8B model on one large GPU, about: nothing more up to 512."""


def test_on_a_curve_a_token_costs_what_it_does_in_a_step_of_so_many() -> None:
    costs = replace(APART, prefill_curve=CURVE)
    for tokens, seconds in CURVE:
        assert costs.token_s(tokens) * tokens == pytest.approx(seconds)
    assert costs.token_s(768) * 768 == pytest.approx(0.006)
    assert costs.token_s(16) == pytest.approx(0.002 / 64)
    assert costs.token_s(100_000) == pytest.approx(0.130 / 8192)
    assert APART.token_s(512) == APART.per_prefill_token_s


def test_work_on_a_curve_costs_what_its_mean_step_does() -> None:
    costs = replace(APART, prefill_curve=CURVE)
    work = StepWork(10, 0, 5120, 5120 * 256.0)
    assert costs.seconds(work) == pytest.approx(10 * 0.010 + 10 * 0.002 + 5120 * 256.0 * 1e-9)


def test_a_curve_is_kept_where_the_straight_line_is_wrong_and_only_there() -> None:
    straight = [(n, APART.prefill_s(n * 5e-5 + n * n / 2 * 1e-9)) for n in (64, 512, 4096)]
    assert with_prefill_curve(APART, straight) == APART
    crooked = [(n, APART.prefill_fixed_s + seconds + n * n / 2 * 1e-9) for n, seconds in CURVE]
    found = with_prefill_curve(APART, crooked).prefill_curve
    assert [n for n, _ in found] == [n for n, _ in CURVE]
    assert [s for _, s in found] == pytest.approx([s for _, s in CURVE])


def test_a_curve_never_falls() -> None:
    assert with_prefill_curve(APART, [(16, 0.030), (64, 0.012), (512, 0.020)]).prefill_curve == tuple(
        (tokens, pytest.approx(0.020, abs=2e-4)) for tokens in (16, 64, 512)
    )
