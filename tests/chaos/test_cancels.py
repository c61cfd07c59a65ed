"""Clients leave in every state: their blocks are back within a quarter of a second, and none is leaked."""

import pytest

from tests.chaos.cancels import CELLS, Cancels, run_seed

BACK_S = 0.25
NUM_QUICK, NUM_ALL = 300, 10_000


def cancel_until(number: int, start: int) -> Cancels:
    sums, seed = Cancels(), start
    while sums.number < number:
        run_seed(seed, sums)
        seed += 1
    print("\n".join(sums.lines()))
    return sums


def test_blocks_of_some_hundred_cancelled_requests_are_back_within_a_quarter_of_a_second() -> None:
    assert cancel_until(NUM_QUICK, start=0).share(0.99) <= BACK_S


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_cancels_meet_every_state_and_leak_nothing() -> None:
    sums = cancel_until(NUM_ALL, start=1000)
    assert sums.share(0.99) <= BACK_S
    assert [cell for cell in CELLS if not sums.hits[cell]] == []
