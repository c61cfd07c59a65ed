"""What steps cost: told prices are corrected by what steps took, and where none were told, they are learned."""

from dataclasses import replace

import pytest

from core.costs import NodeCosts, StepWork
from core.stats import BlockCounts, NodeStats
from scheduler.belief import NEUTRAL, TOLD_BOUNDS, Belief

TOLD = NodeCosts(0.01, 0.01, 5e-5, 1.5e-9, 1.5e-4, 4e-7)
BLOCKS = BlockCounts(1, 1, 0, 0, 0, 0, 0, 0, 0)

PREFILL = StepWork(4, 0, 2000, 2000 * 400.0, 0, 0)
DECODE = StepWork(0, 20, 0, 0.0, 20 * 32, 20 * 32 * 600)
MIXES = (
    PREFILL.plus(DECODE),
    StepWork(1, 5, 512, 512 * 2000.0, 6 * 60, 6 * 60 * 300, 1, 60, 60 * 300),
    StepWork(3, 1, 300, 300 * 50.0, 4 * 10, 4 * 10 * 900, 3, 30, 30 * 900),
    StepWork(0, 30, 0, 0.0, 30 * 4, 30 * 4 * 2000),
    StepWork(6, 0, 3072, 3072 * 900.0, 6 * 20, 6 * 20 * 100, 6, 6 * 20, 6 * 20 * 100),
    StepWork(10, 4, 640, 640 * 900.0, 14 * 50, 14 * 50 * 800, 10, 10 * 50, 10 * 50 * 800),
    DECODE,
)


class Reporter:
    """A node whose steps cost something else than it says. Owns: its counters."""

    def __init__(self, truth: NodeCosts) -> None:
        self.truth = truth
        self.work, self.busy_s = StepWork(), 0.0

    def did(self, work: StepWork) -> NodeStats:
        """Its report after this."""
        self.work = self.work.plus(work)
        self.busy_s += self.truth.seconds(work)
        return NodeStats(0, 0, 0, 0, 0, BLOCKS, 0, 0, 0.0, 0, work=self.work, busy_s=self.busy_s)


def scaled(costs: NodeCosts, prefill: float, decode: float) -> NodeCosts:
    """Prompts and rows off by a factor each."""
    return NodeCosts(
        costs.prefill_fixed_s * prefill,
        costs.decode_fixed_s * decode,
        costs.per_prefill_token_s * prefill,
        costs.per_prefill_pair_s * prefill,
        costs.per_row_s * decode,
        costs.per_row_context_s * decode,
        costs.overlap,
        tuple((tokens, seconds * prefill) for tokens, seconds in costs.prefill_curve),
    )


def test_told_prices_are_believed_until_steps_ran() -> None:
    belief = Belief(TOLD)
    assert belief.costs == TOLD and not belief.is_proven
    assert not belief.observe(Reporter(TOLD).did(StepWork()))
    assert not belief.is_proven


def test_steps_of_one_kind_correct_both_until_the_other_kind_was_seen() -> None:
    belief, node = Belief(TOLD), Reporter(scaled(TOLD, 2.0, 2.0))
    belief.observe(node.did(PREFILL))
    assert belief.costs.seconds(PREFILL) == pytest.approx(2 * TOLD.seconds(PREFILL), rel=0.05)
    assert belief.costs.seconds(DECODE) == pytest.approx(2 * TOLD.seconds(DECODE), rel=0.1)


def test_prompts_and_rows_are_told_apart() -> None:
    belief, node = Belief(TOLD), Reporter(scaled(TOLD, 2.0, 0.7))
    for _ in range(10):
        for work in MIXES:
            belief.observe(node.did(work))
    assert belief.factors == pytest.approx((2.0, 0.7), rel=0.04)
    assert belief.costs.seconds(PREFILL) == pytest.approx(2.0 * TOLD.seconds(PREFILL), rel=0.04)
    assert belief.costs.seconds(DECODE) == pytest.approx(0.7 * TOLD.seconds(DECODE), rel=0.04)


def test_prompts_and_rows_are_told_apart_on_a_curve() -> None:
    told = replace(TOLD, prefill_curve=((64, 0.004), (512, 0.005), (4096, 0.2)))
    belief, truth = Belief(told), scaled(told, 2.0, 0.7)
    node = Reporter(truth)
    for _ in range(20):
        for work in MIXES:
            belief.observe(node.did(work))
    assert belief.factors == pytest.approx((2.0, 0.7), rel=0.1)
    assert belief.costs.token_s(300) == pytest.approx(truth.token_s(300), rel=0.1)


def test_a_node_that_becomes_slower_is_believed_to_be_so_and_what_was_before_is_forgotten() -> None:
    belief, fast, slow = Belief(TOLD), Reporter(TOLD), Reporter(scaled(TOLD, 3.0, 3.0))
    for _ in range(100):
        belief.observe(fast.did(MIXES[0]))
    assert belief.costs.seconds(MIXES[0]) == pytest.approx(TOLD.seconds(MIXES[0]), rel=0.01)
    slow.work, slow.busy_s = fast.work, fast.busy_s
    for _ in range(150):
        belief.observe(slow.did(MIXES[0]))
    assert belief.costs.seconds(MIXES[0]) == pytest.approx(3 * TOLD.seconds(MIXES[0]), rel=0.05)


def test_a_correction_is_bounded() -> None:
    belief, node = Belief(TOLD), Reporter(scaled(TOLD, 100.0, 100.0))
    for _ in range(50):
        belief.observe(node.did(MIXES[0]))
    assert max(belief.factors) <= TOLD_BOUNDS[1]


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
def test_prompts_and_rows_are_told_apart_where_one_hides_behind_the_other(overlap: float) -> None:
    told = replace(TOLD, overlap=overlap)
    truth = scaled(told, 2.0, 0.7)
    belief, node = Belief(told), Reporter(truth)
    for _ in range(30):
        for work in MIXES:
            belief.observe(node.did(work))
    for work in (PREFILL, DECODE, *MIXES):
        assert belief.costs.seconds(work) == pytest.approx(truth.seconds(work), rel=0.1)


def test_what_hides_in_mixed_steps_does_not_make_prompts_cheap() -> None:
    """Chunks of 128 that hide behind the weights of a large model: the whole step is an eighth shorter than told."""
    curve = ((16, 0.0208), (128, 0.0217), (256, 0.0374), (8192, 1.2))
    told = NodeCosts(0.0, 0.02, 1.5e-4, 2.7e-9, 4e-5, 4.3e-8, 0.85, curve)
    belief, node = Belief(told), Reporter(replace(told, overlap=1.0))
    beside_rows = StepWork(10, 0, 1280, 1280 * 1000.0, 200, 200 * 2000, 10, 200, 200 * 2000)
    rows = StepWork(0, 10, 0, 0.0, 200, 200 * 2000)
    for _ in range(200):
        belief.observe(node.did(beside_rows))
        belief.observe(node.did(rows))
    for work in (beside_rows, rows):
        assert belief.costs.seconds(work) == pytest.approx(node.truth.seconds(work), rel=0.08)
    large = StepWork(1, 0, 4096, 4096 * 2048.0, 0, 0)
    assert belief.costs.seconds(large) == pytest.approx(told.seconds(large), rel=0.15)
    for _ in range(20):
        belief.observe(node.did(large))
    assert belief.costs.seconds(large) == pytest.approx(told.seconds(large), rel=0.02)


@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("speed", [0.05, 1.0, 40.0])
def test_prices_that_nobody_told_are_learned(speed: float, overlap: float) -> None:
    truth = scaled(NodeCosts(0.02, 0.012, 1e-4, 3e-9, 2e-4, 6e-7, overlap), speed, speed)
    belief, node = Belief(None), Reporter(truth)
    assert belief.costs == NEUTRAL
    for _ in range(40):
        for work in MIXES:
            belief.observe(node.did(work))
    for work in (PREFILL, DECODE, *MIXES):
        assert belief.costs.seconds(work) == pytest.approx(truth.seconds(work), rel=0.1)


def test_the_same_reports_give_the_same_bits() -> None:
    found = []
    for _ in range(2):
        belief, node = Belief(None), Reporter(TOLD)
        for work in MIXES * 5:
            belief.observe(node.did(work))
        found.append(belief.costs)
    assert found[0] == found[1]


def test_a_step_that_only_copies_says_nothing() -> None:
    belief = Belief(TOLD)
    assert not belief.observe(Reporter(TOLD).did(StepWork(0, 3, 0, 0.0, 0, 0)))
