"""The one definition of goodput."""

import pytest

from core.goodput import Outcome, RequestRecord, goodput, meets
from core.request import SLO

TARGETS = SLO(ttft_s=1.0, tpot_s=0.1)


def finished(ttft_s: float, tpot_s: float, num_tokens: int) -> RequestRecord:
    return RequestRecord(Outcome.FINISHED, ttft_s, ttft_s + tpot_s * (num_tokens - 1), num_tokens)


@pytest.mark.parametrize("ended", [Outcome.REFUSED, Outcome.EXPIRED, Outcome.FAILED])
def test_a_request_that_was_not_answered_is_a_miss_however_quick_it_was(ended: Outcome) -> None:
    account = goodput([finished(0.5, 0.05, 10), RequestRecord(ended, 0.1, 0.2, 5)], TARGETS, duration_s=2.0)
    assert (account.num_counted, account.num_met) == (2, 1)
    assert account.attainment == 0.5
    assert account.goodput_rps == 0.5


def test_a_cancelled_request_is_counted_beside_and_left_out() -> None:
    account = goodput([finished(0.5, 0.05, 10), RequestRecord(Outcome.CANCELLED)], TARGETS, duration_s=1.0)
    assert (account.num_counted, account.num_met, account.num_cancelled) == (1, 1, 1)


def test_both_targets_have_to_be_met() -> None:
    assert meets(finished(1.0, 0.0625, 9), TARGETS)
    assert not meets(finished(1.01, 0.05, 9), TARGETS)
    assert not meets(finished(0.5, 0.11, 9), TARGETS)


def test_the_targets_themselves_are_met() -> None:
    assert meets(RequestRecord(Outcome.FINISHED, 1.0, 1.5, 3), SLO(1.0, 0.25))


def test_an_answer_of_one_token_meets_any_time_per_token() -> None:
    one = RequestRecord(Outcome.FINISHED, 0.5, 0.5, 1)
    assert one.tpot_s is None
    assert meets(one, SLO(1.0, 0.0))


def test_a_finished_request_without_any_token_is_a_miss() -> None:
    assert not meets(RequestRecord(Outcome.FINISHED), TARGETS)


def test_time_per_token_is_the_mean_over_the_tokens_after_the_first() -> None:
    assert RequestRecord(Outcome.FINISHED, 1.0, 3.0, 5).tpot_s == 0.5


def test_of_nothing_there_is_no_attainment_and_no_goodput() -> None:
    account = goodput([], TARGETS, duration_s=0.0)
    assert account.attainment is None
    assert account.goodput_rps == 0.0
