"""Rows that guess: how far they may, what becomes of confirmed and refuted drafts, and who must not suffer for it."""

import pytest

from core.events import AttemptEnd, FinishReason
from decode_worker.drafts import FIRST_PAUSE
from tests.machines.row_bench import EOS, RowBench


def test_a_lone_row_guesses_from_its_first_step_on_and_has_blocks_for_all() -> None:
    bench = RowBench(drafts=3)
    row = bench.start("r", 4)
    assert bench.last.max_drafts == (), "the prompt's step samples one token"
    bench.step()
    assert (bench.last.attempts, bench.last.num_tokens, bench.last.max_drafts) == ((row,), (1,), (3,))
    assert sum(len(growth.block_ids) for growth in bench.last.grown) == 1, "positions 4 to 7"
    bench.drop(row)
    bench.finish()


@pytest.mark.parametrize(("max_tokens", "drafts"), [(8, 3), (4, 2), (3, 1), (2, 0)])
def test_nobody_guesses_beyond_the_answer(max_tokens: int, drafts: int) -> None:
    bench = RowBench(drafts=3)
    bench.start("r", 4, max_tokens)
    bench.step()
    assert bench.last.max_drafts == ((drafts,) if drafts else ())


@pytest.mark.parametrize(("max_model_len", "drafts"), [(8, 3), (7, 2), (6, 1), (5, 0)])
def test_nobody_guesses_beyond_what_the_model_can_hold(max_model_len: int, drafts: int) -> None:
    bench = RowBench(drafts=3, max_model_len=max_model_len)
    bench.start("r", 4)
    bench.step()
    assert bench.last.max_drafts == ((drafts,) if drafts else ())


def test_confirmed_drafts_are_told_in_one_message_and_the_next_step_begins_behind_them() -> None:
    bench = RowBench(drafts=3)
    row = bench.start("r", 4)
    bench.step()
    bench.step({row: (20, 21, 22)}, logprobs=True)
    told = bench.emitted[-1]
    assert (told.attempts, told.indices, told.token_ids) == ((row,) * 3, (1, 2, 3), (20, 21, 22))
    assert [scores.logprob for scores in told.logprobs if scores] == [-20.0, -21.0, -22.0]
    assert sum(len(growth.block_ids) for growth in bench.last.grown) == 1, "positions 7 to 10, 4 to 7 were there"
    stats = bench.node.stats()
    assert (stats.num_drafted, stats.num_accepted) == (3, 2)


def test_refuted_drafts_leave_the_row_where_one_token_brings_it() -> None:
    bench = RowBench(drafts=3)
    row = bench.start("r", 4)
    bench.step()
    bench.step({row: (20,)})
    assert bench.emitted[-1].indices == (1,)
    assert (bench.last.max_drafts, bench.last.grown) == ((2,), ()), "positions 5 to 7 are in the second block"
    bench.step({row: (21,)})
    assert bench.last.max_drafts == (2,)
    assert bench.last.grown[0].attempt == row, "positions 6 to 8"


def test_what_comes_after_the_end_of_an_answer_is_nobodys() -> None:
    bench = RowBench(drafts=3)
    row = bench.start("r", 4)
    bench.step()
    bench.step({row: (20, EOS, 22, 23)})
    told = bench.emitted[-1]
    assert (told.token_ids, told.finishes) == ((20, EOS), (None, FinishReason.STOP))
    assert bench.ends == {row: AttemptEnd.FINISHED}
    bench.finish()


def test_while_drafts_run_their_row_is_not_planned_again_and_others_are() -> None:
    bench = RowBench(drafts=2, num_steps=2)
    first = bench.start("r", 4)
    bench.step()
    assert bench.last.max_drafts == (2,)
    other = bench.start("s", 4)
    assert bench.last.attempts == (other,)
    assert len(bench.plans) == 2
    bench.step({first: (20, 21)})
    assert first in bench.last.attempts


def test_where_steps_overlap_a_row_that_will_guess_waits_for_its_last_result() -> None:
    bench = RowBench(drafts=2, num_steps=2)
    row = bench.start("r", 4, max_tokens=60)
    for _ in range(10):
        bench.step()
    assert [plan.max_drafts for plan in bench.plans] == [(), ()], "guesses never came true: it runs ahead"
    for _ in range(2 * FIRST_PAUSE):
        bench.step()
        if bench.last.max_drafts:
            break
    assert [plan.max_drafts for plan in bench.plans] == [(2,)], "it tries again, with nothing else in flight"
    bench.drop(row)
    bench.finish()


def test_drafts_take_no_block_that_a_row_may_need_and_preempt_nobody() -> None:
    bench = RowBench(5, drafts=7)
    one, other = bench.start("r", 4), bench.start("s", 4)
    bench.step()
    bench.step()
    assert set(bench.last.attempts) == {one, other}
    free = bench.node.stats().blocks.free
    assert free == 1, "each row has its second block, and the last one is left"
    assert max(bench.last.max_drafts) <= 3, "no further than the blocks reach that the next token needs"
    assert bench.ends == {}


@pytest.mark.parametrize("moment", ["drop", "failed step", "failed row"])
def test_a_row_with_drafts_in_flight_ends_once_and_leaves_nothing(moment: str) -> None:
    bench = RowBench(drafts=3)
    row = bench.start("r", 4)
    bench.step()
    if moment == "drop":
        bench.drop(row)
        assert bench.ends == {}, "a step writes its blocks"
        bench.step({row: (20, 21)})
    elif moment == "failed step":
        bench.fail_step()
    else:
        bench.step(failed=(row,))
    end = AttemptEnd.DROPPED if moment == "drop" else AttemptEnd.STEP_FAILED
    assert bench.ends == {row: end}
    bench.finish()
