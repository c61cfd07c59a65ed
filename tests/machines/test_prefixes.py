"""The prefill machine computes nothing twice: what is cached, what is being computed, what is copied, and for how long
the source of a copy is held. Event by event; the node's invariants are checked after each."""

import pytest

from core.events import Claimed, Dropped, LeaseReleased, Lent, Offered, PeerLost
from core.ids import AttemptId
from core.kv import block_keys, num_blocks, tail_key
from core.lifecycle import BlockState, PrefillState
from core.request import Prompt, pack_tokens
from prefill_worker.attempt import key_of_block
from tests.machines.bench import BLOCK_SIZE, EOS, Bench, D, P

LENGTHS = range(1, 14)


def prompt(num_tokens: int, first: int = 10) -> list[int]:
    return list(range(first, first + num_tokens))


def computed_once(bench: Bench, num_tokens: int, name: str = "first") -> AttemptId:
    """A prompt is computed, read by its decode node, and over; its blocks are cached."""
    attempt = bench.submit(name, prompt(num_tokens))
    bench.run_dry()
    for event in (Claimed(attempt, D), Lent(attempt, D), LeaseReleased(attempt, D)):
        bench.handle(event)
    assert bench.ends()[attempt] == "handed_off"
    return attempt


# ── choices of one prompt ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", ["prefill", "mixed"])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_choices_of_one_prompt_cost_one_prefill_and_a_step_of_one_token_each(num_tokens: int, role: str) -> None:
    bench = Bench(role, num_blocks=32)
    decode = D if role == "prefill" else P
    first, *others = [
        bench.submit(f"c{i}", prompt(num_tokens), decode=decode, choice=i, max_tokens=2) for i in range(4)
    ]
    assert bench.plans[0].attempts == (first,)
    bench.step()
    plan = bench.plans[0]
    new = [join.attempt for join in plan.joined]
    assert new == others
    assert [dict(zip(plan.attempts, plan.num_tokens, strict=True))[attempt] for attempt in others] == [1, 1, 1]
    for attempt in others:
        join = bench.join_of(attempt)
        assert join.num_computed == num_tokens - 1
        assert (join.copied_from is None) == ((num_tokens - 1) % BLOCK_SIZE == 0)
        assert join.copied_from not in join.block_ids
    bench.run_dry()
    assert all(len(bench.emitted(attempt)) == (1 if role == "prefill" else 2) for attempt in (first, *others))


def test_the_block_that_is_copied_is_the_first_choices_own_last_one() -> None:
    bench = Bench("mixed")
    first, second = [bench.submit(f"c{i}", prompt(10), decode=P, choice=i) for i in range(2)]
    bench.step()
    mine, its = bench.join_of(second), bench.join_of(first)
    assert mine.copied_from == its.block_ids[2]
    assert mine.block_ids[:2] == its.block_ids[:2]
    assert mine.block_ids[2] != its.block_ids[2]
    assert bench.node.pool.state(its.block_ids[2]) is BlockState.IN_USE
    bench.run_dry()
    assert set(bench.ends().values()) == {"finished"}
    assert bench.node.is_idle()


def test_a_prompt_that_was_answered_with_its_first_token_can_be_copied_too() -> None:
    bench = Bench("mixed")
    bench.submit("first", prompt(6), decode=P)
    bench.step(token=EOS)
    assert bench.node.is_idle()
    assert bench.join_of(bench.submit("second", prompt(6), decode=P)).num_computed == 5


def test_another_tenants_prompt_is_not_found() -> None:
    bench = Bench()
    computed_once(bench, 6)
    same = bench.submit("same", prompt(6))
    other = bench.submit("other", prompt(6, first=11))
    assert (bench.join_of(same).num_computed, bench.num_prefilled(other)) == (5, 0)
    bench.step()
    assert (bench.join_of(other).num_computed, bench.join_of(other).copied_from) == (0, None)


# ── waiting for what is being computed ───────────────────────────────────────────────────────────────────────────────


def test_a_common_beginning_is_computed_once_and_who_waits_for_it_stands_in_nobodys_way() -> None:
    bench = Bench(tokens_per_step=10)
    system = prompt(8)
    first = bench.submit("first", [*system, *prompt(8, 50)])
    second = bench.submit("second", [*system, *prompt(2, 70)])
    other = bench.submit("other", prompt(2, 90))
    assert bench.plans[0].attempts == (first,)
    bench.step()
    assert bench.plans[0].attempts == (first, second, other), "the two common blocks are sealed"
    assert bench.join_of(second).num_computed == 8
    assert bench.join_of(second).block_ids[:2] == bench.join_of(first).block_ids[:2]
    bench.run_dry()
    assert [bench.num_prefilled(attempt) for attempt in (first, second, other)] == [16, 2, 2]


def test_others_go_first_while_a_prompt_waits() -> None:
    bench = Bench(tokens_per_step=16)
    bench.submit("first", prompt(9))
    second = bench.submit("second", prompt(9))
    other = bench.submit("other", prompt(5, 90))
    bench.step()
    assert set(bench.plans[0].attempts) == {second, other}
    bench = Bench(tokens_per_step=16, num_steps=2)
    bench.submit("first", prompt(9))
    second = bench.submit("second", prompt(9))
    other = bench.submit("other", prompt(5, 90))
    assert [plan.attempts for plan in bench.plans] == [(AttemptId("first#0"),), (other,)]
    assert bench.node.prefill.state_of(second) is PrefillState.QUEUED


@pytest.mark.parametrize("end", ["dropped", "peer lost", "step failed", "row failed"])
def test_who_waited_for_an_attempt_that_ends_computes_for_itself_what_is_not_there(end: str) -> None:
    bench = Bench(tokens_per_step=5)
    first = bench.submit("first", prompt(10))
    second = bench.submit("second", prompt(10), decode=P if end == "peer lost" else D, max_tokens=1)
    bench.step()
    assert bench.plans[0].attempts == (first,)
    match end:
        case "dropped":
            bench.handle(Dropped(first))
            bench.step()
        case "peer lost":
            bench.handle(PeerLost(D))
            bench.step()
        case "step failed":
            bench.fail_step()
        case "row failed":
            bench.step(failed=(first,))
    assert bench.join_of(second).num_computed == (0 if end == "row failed" else 4)
    assert bench.join_of(second).copied_from is None
    bench.run_dry()
    assert len(bench.emitted(second)) == 1


def test_when_the_one_that_computes_is_lost_only_the_oldest_of_those_that_waited_takes_over() -> None:
    bench = Bench(tokens_per_step=16)
    first, second, third = [bench.submit(name, prompt(10)) for name in ("a", "b", "c")]
    bench.fail_step()
    assert bench.plans[0].attempts == (second,)
    bench.step()
    assert bench.plans[0].attempts == (third,)
    assert bench.join_of(third).num_computed == 9
    assert bench.ends() == {first: "step_failed"}


def test_a_prompt_that_is_here_already_counts_as_one_token_in_what_is_queued() -> None:
    bench = Bench(tokens_per_step=4)
    for name in ("a", "b", "c"):
        bench.submit(name, prompt(10))
    bench.submit("scored", prompt(10), prompt_logprobs=0)
    assert bench.node.stats().queued_tokens == 10 + 1 + 1 + 10
    bench.step()
    assert bench.node.stats().queued_tokens == 6 + 1 + 1 + 10


# ── the source of a copy ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("end", ["done", "first token ends it", "dropped", "peer lost", "step failed", "row failed"])
def test_the_source_of_a_copy_is_held_until_its_step_is_over_whatever_happens(end: str, num_steps: int) -> None:
    bench = Bench(num_blocks=7, num_steps=num_steps)
    source = bench.join_of(computed_once(bench, 10)).block_ids[2]
    second = bench.submit("second", prompt(10))
    assert bench.join_of(second).copied_from == source
    if end == "dropped":
        bench.handle(Dropped(second))
    elif end == "peer lost":
        bench.handle(PeerLost(D))
    greedy = bench.submit("greedy", prompt(16 if end == "done" else 20, 100), decode=P)
    assert bench.node.pool.num_held == 1
    assert bench.node.pool.state(source) is BlockState.SEALED
    assert bench.node.prefill.state_of(greedy) is PrefillState.QUEUED
    if end == "step failed":
        bench.fail_step()
    else:
        bench.step(failed=(second,) if end == "row failed" else (), token=EOS if end == "first token ends it" else 7)
    assert bench.node.pool.num_held == 0
    assert source in bench.join_of(greedy).block_ids, "its place goes to the next"
    bench.run_dry()


def test_without_room_for_the_source_a_copy_is_not_made_and_nothing_waits_for_ever() -> None:
    bench = Bench(num_blocks=3)
    computed_once(bench, 10)
    second = bench.submit("second", prompt(10))
    assert (bench.join_of(second).num_computed, bench.join_of(second).copied_from) == (8, None)
    bench.run_dry()
    assert len(bench.emitted(second)) == 1


def test_a_row_that_needs_a_block_waits_for_the_source_of_a_copy_instead_of_preempting() -> None:
    bench = Bench("mixed", num_blocks=4, num_steps=2)
    first = bench.submit("first", prompt(2), decode=P, max_tokens=1)
    bench.run_dry()
    row = bench.submit("row", prompt(8, 50), decode=P, max_tokens=2)
    copier = bench.submit("copier", prompt(2), decode=P, max_tokens=1)
    assert [plan.attempts for plan in bench.plans] == [(row,), (copier,)]
    assert bench.join_of(copier).copied_from is not None
    bench.step()
    assert bench.node.pool.num_available == 0
    bench.run_dry()
    assert bench.ends() == {first: "finished", copier: "finished", row: "finished"}


# ── what must not be found ───────────────────────────────────────────────────────────────────────────────────────────


def test_who_wants_the_scores_of_its_prompt_computes_all_of_it_and_others_find_it() -> None:
    bench = Bench()
    computed_once(bench, 10)
    scored = bench.submit("scored", prompt(10), prompt_logprobs=0)
    assert bench.join_of(scored).num_computed == 0
    bench.step()
    second = bench.submit("second", prompt(10))
    assert bench.join_of(second).num_computed == 9


@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize("num_log", [1, 3, 4, 6])
def test_a_retry_finds_its_prompt_and_computes_only_what_was_answered(num_tokens: int, num_log: int) -> None:
    bench = Bench(num_blocks=32)
    source = bench.join_of(computed_once(bench, num_tokens)).block_ids[-1]
    again = bench.join_of(bench.submit("again", prompt(num_tokens), log=[7] * num_log))
    assert again.num_computed == num_tokens
    assert again.num_prompt_tokens == num_tokens
    assert again.copied_from == (source if num_tokens % BLOCK_SIZE else None)


@pytest.mark.parametrize("role", ["prefill", "mixed"])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_what_a_retry_leaves_behind_is_found_as_its_prompt_and_never_as_more(num_tokens: int, role: str) -> None:
    bench = Bench(role, num_blocks=32)
    decode = D if role == "prefill" else P
    retried = bench.join_of(bench.submit("retried", prompt(num_tokens), decode=decode, log=prompt(6, 40), max_tokens=7))
    bench.run_dry()
    same = bench.join_of(bench.submit("same", prompt(num_tokens), decode=decode, max_tokens=1))
    assert same.num_computed == num_tokens - 1
    if (num_tokens - 1) % BLOCK_SIZE:
        assert same.copied_from == retried.block_ids[(num_tokens - 1) // BLOCK_SIZE]
    bench.run_dry()
    longer = bench.join_of(bench.submit("longer", [*prompt(num_tokens), *prompt(7, 40)], decode=decode))
    assert longer.num_computed == num_tokens // BLOCK_SIZE * BLOCK_SIZE


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_only_blocks_with_tokens_of_the_prompt_have_a_key_and_no_two_the_same(num_tokens: int) -> None:
    packed = pack_tokens(prompt(num_tokens))
    words = Prompt(num_tokens, block_keys(packed, BLOCK_SIZE), tail_key(packed, BLOCK_SIZE))
    keys = [key_of_block(words, index, BLOCK_SIZE) for index in range(8)]
    num = num_blocks(num_tokens, BLOCK_SIZE)
    assert keys[num - 1] == words.tail_key
    assert len(set(keys[:num]) - {None}) == num
    assert set(keys[num:]) == {None}


def test_a_row_that_failed_ends_alone_and_nobody_finds_what_it_computed() -> None:
    bench = Bench(tokens_per_step=16)
    bench.submit("before", prompt(16, 100))
    bad, good = bench.submit("bad", prompt(8)), bench.submit("good", prompt(4, 60))
    bench.step()
    assert bench.plans[0].attempts == (bad, good)
    bench.step(failed=(bad,))
    assert bench.ends() == {bad: "step_failed"}
    assert (len(bench.emitted(bad)), len(bench.emitted(good))) == (0, 1)
    assert bench.join_of(bench.submit("again", prompt(8))).num_computed == 0


def test_a_prefix_that_a_failed_row_had_found_is_not_offered_to_its_retry() -> None:
    bench = Bench()
    computed_once(bench, 10)
    bad = bench.submit("bad", prompt(10))
    assert bench.join_of(bad).num_computed == 9
    bench.step(failed=(bad,))
    assert bench.join_of(bench.submit("again", prompt(10))).num_computed == 0


def test_a_claimed_reader_is_told_when_the_row_it_reads_from_has_failed() -> None:
    bench = Bench(tokens_per_step=4)
    bad = bench.submit("bad", prompt(10))
    bench.step()
    bench.handle(Claimed(bad, D))
    bench.handle(Lent(bad, D))
    commands = bench.step(failed=(bad,))
    assert [getattr(getattr(command, "event", None), "granted", None) for command in commands] == [False]
    bench.handle(LeaseReleased(bad, D))
    assert bench.ends() == {bad: "step_failed"}


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_found_is_told_in_the_timing_and_counted() -> None:
    bench = Bench()
    computed_once(bench, 10)
    second = bench.submit("second", prompt(10))
    commands = bench.step()
    (offer,) = [event for c in commands if isinstance(event := getattr(c, "event", None), Offered)]
    assert offer.attempt == second and offer.done is not None
    assert offer.done.timing.num_cached_tokens == 9
    assert (bench.node.prefill.num_prompt_tokens, bench.node.prefill.num_cached_tokens) == (20, 9)
    assert (bench.node.stats().num_prompt_tokens, bench.node.stats().num_cached_tokens) == (20, 9)


def test_the_scores_of_a_prompt_are_gathered_over_its_chunks_and_come_with_its_first_token() -> None:
    bench = Bench(tokens_per_step=4)
    attempt = bench.submit("r", prompt(10), prompt_logprobs=0)
    bench.run_dry()
    (event,) = bench.emitted(attempt)
    assert [score.logprob for score in event.prompt_logprobs[0] or ()] == [-float(i) for i in range(1, 10)]
    assert event.logprobs == ()


def test_a_prompt_of_one_token_has_scores_and_they_are_none() -> None:
    bench = Bench()
    attempt = bench.submit("r", prompt(1), prompt_logprobs=0)
    bench.step()
    assert bench.emitted(attempt)[0].prompt_logprobs == ((),)


def test_the_first_token_brings_its_log_probability_where_it_was_asked() -> None:
    bench = Bench()
    asked = bench.submit("asked", prompt(4), logprobs=0)
    bench.step(logprob=-0.5)
    assert [score.logprob for event in bench.emitted(asked) for score in event.logprobs if score] == [-0.5]
    silent = bench.submit("silent", prompt(4, 60))
    bench.step()
    assert [(event.logprobs, event.prompt_logprobs) for event in bench.emitted(silent)] == [((), ())]
