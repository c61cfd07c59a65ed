"""The fake executor: it agrees with its oracle, and no wrong byte escapes it."""

import pytest

from cluster.simulated.scenario import EOS_TOKEN_IDS, make_request
from core.errors import StepFailed
from core.events import FinishReason
from core.ids import AttemptId
from core.request import Request, pack_tokens
from core.step import RowGrowth, RowJoin, StepPlan
from engine.fake import FakeExecutor, FakeMemory, reference_tokens

A = AttemptId("a#1")
REQUEST = make_request("a", [5, 6, 7, 8, 9], max_tokens=6, seed=11, ignore_eos=True)


def join(block_ids: tuple[int, ...], known: list[int], num_computed: int = 0, request: Request = REQUEST) -> RowJoin:
    return RowJoin(A, pack_tokens(known), num_computed, request.sampling, block_ids, tuple(1 for _ in block_ids))


def answer(executor: FakeExecutor, first: StepPlan, count: int) -> list[int]:
    token_ids = list(executor.run(first).token_ids)
    while len(token_ids) < count:
        token_ids += executor.run(StepPlan(first.step + len(token_ids), (A,), (1,))).token_ids
    return token_ids


@pytest.mark.parametrize("chunks", [(5,), (1, 4), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_any_chunks_and_any_blocks_give_the_answer_of_the_oracle(chunks: tuple[int, ...]) -> None:
    executor = FakeExecutor(FakeMemory(8, 4))
    plans = [
        StepPlan(i, (A,), (n,), joined=(join((6, 1, 4), [5, 6, 7, 8, 9]),) if i == 0 else ())
        for i, n in enumerate(chunks)
    ]
    for plan in plans[:-1]:
        assert executor.run(plan).attempts == ()
    right, finish = reference_tokens(REQUEST, EOS_TOKEN_IDS)
    assert tuple(answer(executor, plans[-1], 6)) == right
    assert finish is FinishReason.LENGTH


def test_a_row_goes_on_elsewhere_with_the_blocks_that_were_copied() -> None:
    source, target = FakeMemory(8, 4), FakeMemory(8, 4)
    first = FakeExecutor(source).run(StepPlan(0, (A,), (5,), joined=(join((0, 1), [5, 6, 7, 8, 9]),)))
    for block, own in ((0, 7), (1, 3)):
        target.write(own, 0, source.read(block, 0, source.block_bytes))
    known = [5, 6, 7, 8, 9, *first.token_ids]
    rest = answer(FakeExecutor(target), StepPlan(0, (A,), (1,), joined=(join((7, 3, 5), known, 5),)), 5)
    assert (*first.token_ids, *rest) == reference_tokens(REQUEST, EOS_TOKEN_IDS)[0]


@pytest.mark.parametrize("slot", range(5))
def test_one_wrong_slot_anywhere_changes_every_later_token(slot: int) -> None:
    memory = FakeMemory(8, 4)
    executor = FakeExecutor(memory)
    token_ids = list(executor.run(StepPlan(0, (A,), (5,), joined=(join((0, 1, 2), [5, 6, 7, 8, 9]),))).token_ids)
    memory.slots[slot] ^= 1
    for step in range(1, 6):
        token_ids += executor.run(StepPlan(step, (A,), (1,))).token_ids
    right = reference_tokens(REQUEST, EOS_TOKEN_IDS)[0]
    assert token_ids[0] == right[0]
    assert sum(a != b for a, b in zip(token_ids[1:], right[1:], strict=True)) >= 4


def test_two_blocks_in_the_wrong_order_change_the_answer() -> None:
    memory = FakeMemory(8, 2)
    executor = FakeExecutor(memory)
    executor.run(StepPlan(0, (A,), (5,), joined=(join((0, 1, 2, 3, 4, 5), [5, 6, 7, 8, 9]),)))
    swapped = FakeExecutor(memory)
    known = [5, 6, 7, 8, 9, reference_tokens(REQUEST)[0][0]]
    token_ids = answer(swapped, StepPlan(0, (A,), (1,), joined=(join((1, 0, 2, 3, 4, 5), known, 5),)), 5)
    assert tuple(token_ids) != reference_tokens(REQUEST, EOS_TOKEN_IDS)[0][1:]


def test_generations_are_in_the_header_before_any_byte() -> None:
    memory = FakeMemory(4, 4)
    executor = FakeExecutor(memory)
    before = bytes(memory.bytes)
    executor.begin(StepPlan(0, (A,), (5,), joined=(join((2, 3), [5, 6, 7, 8, 9]),)))
    assert memory.generations == [0, 0, 1, 1]
    assert bytes(memory.bytes) == before
    executor.begin(StepPlan(1, (), (), grown=(RowGrowth(A, (0,), (7,)),)))
    assert memory.generations == [7, 0, 1, 1]


def test_a_block_that_is_reused_under_a_running_step_is_seen_at_once() -> None:
    memory = FakeMemory(4, 4)
    executor = FakeExecutor(memory)
    executor.begin(StepPlan(0, (A,), (5,), joined=(join((2, 3), [5, 6, 7, 8, 9]),)))
    memory.generations[3] = 2
    with pytest.raises(AssertionError, match="reused under a running step"):
        executor.advance(A, 5)


def test_digests_are_of_the_whole_block_after_the_step() -> None:
    memory = FakeMemory(4, 4)
    result = FakeExecutor(memory).run(StepPlan(0, (A,), (5,), joined=(join((2, 3), [5, 6, 7, 8, 9]),), seal=(2, 3)))
    assert result.sealed == (2, 3)
    assert result.digests == (memory.digest(2), memory.digest(3))
    assert all(len(digest) == 16 for digest in result.digests)


def test_rows_of_a_step_that_cannot_be_run_are_forgotten() -> None:
    executor = FakeExecutor(FakeMemory(4, 4))
    with pytest.raises(StepFailed, match="cannot advance 6"):
        executor.run(StepPlan(0, (A,), (6,), joined=(join((0, 1), [5, 6, 7, 8, 9]),)))
    with pytest.raises(StepFailed, match="not resident"):
        executor.run(StepPlan(1, (A,), (1,)))


def test_an_end_token_or_the_limit_ends_the_oracles_answer() -> None:
    endless, _ = reference_tokens(REQUEST, EOS_TOKEN_IDS)
    stopped = make_request("a", [5, 6, 7, 8, 9], max_tokens=6, seed=11)
    token_ids, finish = reference_tokens(stopped, frozenset(endless[2:3]))
    assert token_ids == endless[: endless.index(endless[2]) + 1]
    assert finish is FinishReason.STOP
