"""How far a row may guess: as far as it pays, not at all where it does not, and now and then to find out."""

import pytest

from decode_worker.config import PreemptionCosts
from decode_worker.drafts import FIRST_PAUSE, MAX_PAUSE, MAX_ROWS, PROBE_TOKENS, Drafting, DraftPolicy, num_without

POLICY = DraftPolicy(8, None, overlaps=False)


def after(*rounds: tuple[int, int, int]) -> Drafting:
    """A row after steps of (drafts allowed, tried, confirmed)."""
    drafting = Drafting()
    for num_allowed, num_tried, num_confirmed in rounds:
        drafting.learn(num_allowed, num_tried, num_confirmed)
    return drafting


def test_the_better_the_guesses_the_more_are_made() -> None:
    wishes = [POLICY.wish(Drafting(acceptance=acceptance), 1, 0) for acceptance in (0.3, 0.5, 0.7, 0.9)]
    assert wishes == sorted(wishes)
    assert wishes[0] < wishes[-1] == 8


def test_the_more_rows_share_a_step_the_fewer_guesses_pay() -> None:
    wishes = [POLICY.wish(Drafting(acceptance=0.6, pause=1), num_rows, 0) for num_rows in range(1, MAX_ROWS + 2)]
    assert wishes == sorted(wishes, reverse=True)
    assert wishes[-1] == 0


def test_a_large_batch_does_not_even_try() -> None:
    eager = Drafting(acceptance=1.0)
    assert POLICY.wish(eager, MAX_ROWS, 0) > 0
    assert POLICY.wish(eager, MAX_ROWS + 1, 0) == 0


def test_where_no_drafts_are_allowed_none_are_wished() -> None:
    assert DraftPolicy(0, None, overlaps=False).wish(Drafting(acceptance=1.0), 1, 0) == 0


def test_refuted_guesses_stop_and_are_tried_again_after_a_pause_that_grows() -> None:
    drafting, pauses = after(*[(4, 4, 0)] * 40), []
    for _ in range(8):
        num_tokens = 0
        while not POLICY.wish(drafting, 8, 0):
            drafting.skip()
            num_tokens += 1
        assert POLICY.wish(drafting, 8, 0) == PROBE_TOKENS
        drafting.learn(PROBE_TOKENS, PROBE_TOKENS, 0)
        pauses.append(num_tokens)
    assert pauses == [FIRST_PAUSE, 16, 32, 64, 128, 256, MAX_PAUSE, MAX_PAUSE]


def test_guesses_that_come_true_again_are_made_again() -> None:
    drafting = after(*[(4, 4, 0)] * 10)
    assert POLICY.wish(drafting, 8, 0) == 0
    for _ in range(12):
        drafting.learn(PROBE_TOKENS, PROBE_TOKENS, PROBE_TOKENS)
    assert POLICY.wish(drafting, 8, 0) > PROBE_TOKENS


def test_a_try_that_came_true_altogether_is_followed_by_another_even_where_guessing_does_not_pay_yet() -> None:
    policy, drafting = DraftPolicy(4, None, overlaps=True), Drafting()
    drafting.learn(PROBE_TOKENS, PROBE_TOKENS, PROBE_TOKENS)
    assert policy.wish(drafting, 8, 7) == PROBE_TOKENS
    drafting.learn(PROBE_TOKENS, PROBE_TOKENS, 1)
    assert policy.wish(drafting, 8, 7) == 0


def test_what_nobody_could_propose_costs_nothing_and_refutes_nothing() -> None:
    drafting = after(*[(4, 0, 0)] * 50)
    assert drafting.acceptance == Drafting().acceptance
    assert POLICY.wish(drafting, 1, 0) > 0


def test_only_the_first_refuted_draft_counts_against_the_guesses() -> None:
    assert after((8, 8, 3)).acceptance == after((8, 4, 3)).acceptance
    assert after((8, 3, 3)).acceptance > after((8, 4, 3)).acceptance


@pytest.mark.parametrize(("fixed_s", "guesses"), [(0.1, True), (0.0001, False)])
def test_measured_costs_decide_where_there_are_any(fixed_s: float, guesses: bool) -> None:
    policy = DraftPolicy(4, PreemptionCosts(fixed_s, 0.001, 0.0, 0.0), overlaps=False)
    assert (policy.wish(Drafting(pause=1), 1, 0) > 0) == guesses


def test_where_steps_overlap_a_turn_that_others_take_meanwhile_is_part_of_the_price() -> None:
    policy, drafting = DraftPolicy(4, None, overlaps=True), Drafting(acceptance=0.5, pause=1)
    assert policy.wish(drafting, 4, 0) > 0, "all guess: nobody runs on meanwhile"
    assert policy.wish(drafting, 4, 3) == 0, "it would win less than one token and lose a turn"
    assert policy.wish(Drafting(acceptance=0.9, pause=1), 4, 3) > 0


def test_who_did_not_guess_last_is_counted() -> None:
    skipped = after((1, 1, 1))
    skipped.skip()
    assert num_without((Drafting(), skipped, after((1, 1, 1)))) == 2
