"""The fake executor: it agrees with its oracle, and no wrong byte escapes it."""

from dataclasses import replace

import pytest

from cluster.simulated.scenario import EOS_TOKEN_IDS, make_request
from core.errors import StepFailed
from core.events import FinishReason
from core.ids import AttemptId
from core.request import Request, pack_tokens
from core.step import RowGrowth, RowJoin, StepPlan
from engine.fake import FakeExecutor
from engine.fake_memory import FakeMemory
from engine.fake_truth import reference_tokens, scores_of

A = AttemptId("a#1")
REQUEST = make_request("a", [5, 6, 7, 8, 9], max_tokens=6, seed=11, ignore_eos=True)


def join(block_ids: tuple[int, ...], known: list[int], num_computed: int = 0, request: Request = REQUEST) -> RowJoin:
    generations = tuple(1 for _ in block_ids)
    num_prompt_tokens = request.prompt.num_tokens
    return RowJoin(A, pack_tokens(known), num_computed, request.sampling, block_ids, generations, num_prompt_tokens)


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


# ── drafts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def drafted(max_drafts: int, seed: int) -> tuple[list[int], set[tuple[int, int]]]:
    """An answer of 12 tokens with so many drafts allowed a step; which numbers of drafts were tried and confirmed."""
    request = make_request("a", [5, 6, 7, 8, 9], max_tokens=12, seed=seed, ignore_eos=True)
    executor, seen = FakeExecutor(FakeMemory(8, 4)), set()
    first = join((0, 1, 2, 3, 4, 5, 6, 7), [5, 6, 7, 8, 9], request=request)
    token_ids = list(executor.run(StepPlan(0, (A,), (5,), joined=(first,))).token_ids)
    while len(token_ids) < 12:
        result = executor.run(StepPlan(len(token_ids), (A,), (1,), max_drafts=(max_drafts,)))
        assert result.attempts == (A,) * len(result.token_ids)
        seen.add((result.num_drafts[0], len(result.token_ids) - 1))
        token_ids += result.token_ids
    right, _ = reference_tokens(request, EOS_TOKEN_IDS)
    assert tuple(token_ids[:12]) == right
    return token_ids, seen


@pytest.mark.parametrize("max_drafts", [0, 1, 3])
def test_drafts_change_no_answer_and_are_confirmed_in_every_possible_part(max_drafts: int) -> None:
    seen = {pair for seed in range(25) for pair in drafted(max_drafts, seed)[1]}
    assert seen == {(tried, right) for tried in range(max_drafts + 1) for right in range(tried + 1)}


def test_drafts_need_blocks_for_all_of_them() -> None:
    executor = FakeExecutor(FakeMemory(8, 4))
    executor.run(StepPlan(0, (A,), (5,), joined=(join((0, 1), [5, 6, 7, 8, 9]),)))
    with pytest.raises(StepFailed, match="needs blocks for 9 tokens and has 2"):
        executor.run(StepPlan(1, (A,), (1,), max_drafts=(3,)))


# ── host memory, copy on write ───────────────────────────────────────────────────────────────────────────────────────


def test_a_row_that_was_saved_goes_on_in_other_blocks_whatever_became_of_its_own() -> None:
    memory = FakeMemory(8, 4)
    executor = FakeExecutor(memory)
    token_ids = list(executor.run(StepPlan(0, (A,), (5,), joined=(join((0, 1), [5, 6, 7, 8, 9]),))).token_ids)
    executor.run(StepPlan(1, (), (), saved=(A,)))
    assert (executor.num_rows, executor.num_saved_blocks) == (0, 2)
    memory.write(0, 0, bytes(2 * memory.block_bytes))
    back = StepPlan(2, (A,), (1,), restored=(RowGrowth(A, (6, 3), (1, 1)),), grown=(RowGrowth(A, (5,), (1,)),))
    token_ids += answer(executor, back, 5)
    assert tuple(token_ids) == reference_tokens(REQUEST, EOS_TOKEN_IDS)[0]
    assert executor.num_saved_blocks == 0


def test_blocks_that_are_reused_before_they_are_copied_out_are_seen() -> None:
    memory = FakeMemory(8, 4)
    executor, plan = FakeExecutor(memory), StepPlan(1, (), (), saved=(A,))
    executor.run(StepPlan(0, (A,), (5,), joined=(join((0, 1), [5, 6, 7, 8, 9]),)))
    executor.begin(plan)
    memory.generations[1] = 2
    with pytest.raises(AssertionError, match="reused under a running step"):
        executor.finish(plan, 0.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"restored": (RowGrowth(A, (4,), (1,)),)}, "comes back to 1 of 2 blocks"),
        ({"restored": (RowGrowth(AttemptId("b#0"), (4, 5), (1, 1)),)}, "was not saved"),
        ({"saved": (A,)}, "not resident"),
    ],
)
def test_a_row_comes_back_whole_and_once(change: dict[str, tuple[RowGrowth, ...]], why: str) -> None:
    executor = FakeExecutor(FakeMemory(8, 4))
    executor.run(StepPlan(0, (A,), (5,), joined=(join((0, 1), [5, 6, 7, 8, 9]),)))
    executor.run(StepPlan(1, (), (), saved=(A,)))
    with pytest.raises(StepFailed, match=why):
        executor.run(StepPlan(2, (), (), **change))


def test_a_saved_row_may_leave() -> None:
    executor = FakeExecutor(FakeMemory(8, 4))
    executor.run(StepPlan(0, (A,), (5,), joined=(join((0, 1), [5, 6, 7, 8, 9]),)))
    executor.run(StepPlan(1, (), (), saved=(A,)))
    executor.run(StepPlan(2, (), (), left=(A,)))
    assert executor.num_saved_blocks == 0


def test_a_block_is_copied_on_write_as_it_was_and_its_source_must_stay() -> None:
    memory = FakeMemory(8, 4)
    executor, b = FakeExecutor(memory), AttemptId("b#0")
    executor.run(StepPlan(0, (A,), (5,), joined=(join((0, 1), [5, 6, 7, 8, 9]),)))
    twin = replace(join((0, 7), [5, 6, 7, 8, 9, 10, 11]), attempt=b, num_computed=5, copied_from=1)
    plan = StepPlan(1, (b, A), (2, 1), joined=(twin,))
    result = executor.run(plan)
    other = make_request("b", [5, 6, 7, 8, 9, 10, 11], 1, seed=11, ignore_eos=True)
    assert result.token_ids[0] == reference_tokens(other)[0][0]
    executor.begin(replace(plan, step=2, attempts=(), num_tokens=(), left=(b,)))
    memory.write(1, 0, bytes(8))
    with pytest.raises(AssertionError, match="reused under a step that copies from it"):
        executor.finish(replace(plan, step=2, attempts=(), num_tokens=()), 0.0)


# ── rows that fail, scores, choices ──────────────────────────────────────────────────────────────────────────────────


def test_a_row_that_fails_has_no_token_and_takes_nobody_with_it() -> None:
    executor, b = FakeExecutor(FakeMemory(8, 4)), AttemptId("b#0")
    twin = replace(join((2, 3), [5, 6, 7, 8, 9]), attempt=b)
    plan = StepPlan(0, (A, b), (5, 5), joined=(join((0, 1), [5, 6, 7, 8, 9]), twin))
    executor.begin(plan)
    executor.advance(A, 5)
    executor.advance(b, 5)
    assert executor.sampled == (A, b)
    result = executor.finish(plan, 0.0, failing=(A,))
    assert (result.attempts, result.failed) == ((b,), (A,))
    ahead = executor.run(StepPlan(1, (A, b), (1, 1)))
    assert (ahead.attempts, ahead.failed) == ((b,), (A,))
    assert executor.run(StepPlan(2, (b,), (1,), left=(A,))).failed == ()


def test_tokens_and_prompts_are_scored_where_that_is_asked() -> None:
    request = make_request("a", [5, 6, 7, 8, 9], 6, seed=11, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    executor = FakeExecutor(FakeMemory(8, 4))
    first = executor.run(StepPlan(0, (A,), (3,), joined=(join((0, 1, 2), [5, 6, 7, 8, 9], request=request),)))
    rest = executor.run(StepPlan(1, (A,), (2,)))
    assert [(scored.first, len(scored.scores)) for scored in (*first.prompt_logprobs, *rest.prompt_logprobs)] == [
        (1, 3),
        (4, 1),
    ]
    assert first.prompt_logprobs[0].scores[0] == scores_of(6, 1)
    assert (first.logprobs, rest.logprobs) == ((), (scores_of(rest.token_ids[0], 2),))
    assert executor.run(StepPlan(2, (A,), (1,))).prompt_logprobs == ()


def test_each_choice_of_a_prompt_has_its_own_answer() -> None:
    answers = {
        reference_tokens(make_request("a", [5, 6, 7], 6, seed=11, ignore_eos=True, choice=choice))[0]
        for choice in range(4)
    }
    assert len(answers) == 4
