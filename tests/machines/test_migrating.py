"""A row that leaves its node, events in and commands compared: sealed, lent, taken; or not taken, and going on."""

from collections.abc import Sequence

import pytest

from core.commands import Command, FetchKV, Lend, Revoke, RunStep, Tell
from core.events import (
    AttemptEnd,
    ClaimAnswered,
    Claimed,
    Dropped,
    Fenced,
    KVArrived,
    LeaseReleased,
    LeasesRenewed,
    Lent,
    MigrateAsked,
    Offered,
    PeerLost,
    Stayed,
    Tick,
)
from core.ids import SCHEDULER, AttemptId, NodeId
from core.lifecycle import DecodeState, PrefillState
from core.request import num_packed, pack_tokens, unpack_tokens
from tests.machines.row_bench import BLOCK_SIZE, HERE, RowBench

THERE, ELSEWHERE = NodeId("there@0"), NodeId("elsewhere@0")


def offered(commands: Sequence[Command]) -> Offered:
    """The one offer among commands."""
    (offer,) = [c.event for c in commands if isinstance(c, Tell) and isinstance(c.event, Offered)]
    return offer


def stayed(commands: Sequence[Command]) -> list[Stayed]:
    """What the scheduler is told of rows that go on."""
    return [c.event for c in commands if isinstance(c, Tell) and c.to == SCHEDULER and isinstance(c.event, Stayed)]


def leaving(num_steps: int = 1, num_prompt_tokens: int = 6) -> tuple[RowBench, AttemptId]:
    """A row that has said 7, 7 and is asked to leave while its third step runs."""
    bench = RowBench(num_steps=num_steps)
    row = bench.start("r", num_prompt_tokens)
    bench.step()
    bench.step()
    assert bench.handle(MigrateAsked(row, THERE)) == []
    return bench, row


def lent() -> tuple[RowBench, AttemptId, Offered]:
    """The row is sealed and offered."""
    bench, row = leaving()
    bench.step()
    return bench, row, offered(bench.step())


def test_a_row_that_leaves_runs_no_further_step_and_is_sealed_by_the_next_one() -> None:
    bench, row = leaving()
    assert bench.node.decode.state_of(row) is DecodeState.LEAVING
    bench.step()
    assert (bench.last.attempts, len(bench.last.seal)) == ((), 1), "8 tokens have KV; the first block was sealed before"
    assert bench.emitted[-1].indices == (2,), "the step that ran still tells its token"
    offer = offered(bench.step())
    assert bench.node.decode.state_of(row) is DecodeState.GONE
    assert bench.node.prefill.state_of(row) is PrefillState.OFFERED
    assert offer.handle.first_block == 0
    assert len(offer.handle.block_ids) == 2


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_offer_carries_the_whole_log_and_ends_like_a_prefill(num_steps: int) -> None:
    bench, row = leaving(num_steps)
    bench.step({row: (20,)})
    while not (commands := bench.step({row: (21,)})) or bench.node.decode.knows(row):
        pass
    offer = offered(commands)
    said = [token for event in bench.emitted for token in event.token_ids]
    assert offer.done is not None
    assert (*unpack_tokens(offer.log), offer.done.token_id) == tuple(said)
    assert offer.done.num_tokens == 6 + len(said) - 1
    assert len(offer.handle.block_ids) == -(-offer.done.num_tokens // BLOCK_SIZE)
    assert all(offer.handle.digests)


def test_blocks_that_were_written_since_they_were_sealed_are_digested_again() -> None:
    bench, _, offer = lent()
    first, *others = offer.handle.block_ids
    assert offer.handle.digests == bench.node.pool.digests((first, *others))
    assert offer.handle.digests[1] == bytes([others[0]]) * 16


def test_the_other_node_goes_on_at_the_next_index_with_all_that_was_said() -> None:
    _, row, offer = lent()
    there = RowBench(node=THERE)
    (claim,) = [c.event for c in there.handle(offer) if isinstance(c, Tell)]
    assert claim == Claimed(row, THERE)
    (fetch,) = [c for c in there.handle(ClaimAnswered(row, HERE, granted=True)) if isinstance(c, FetchKV)]
    commands = there.handle(KVArrived(row, fetch.fetch))
    released = [c.event for c in commands if isinstance(c, Tell) and isinstance(c.event, LeaseReleased)]
    assert [event.has_all for event in released] == [True]
    (plan,) = [c.plan for c in commands if isinstance(c, RunStep)]
    (join,) = plan.joined
    assert join.token_ids == pack_tokens((*range(10, 16), 7, 7, 7))
    assert (join.num_computed, join.num_prompt_tokens) == (8, 6)
    there.step()
    assert there.emitted[-1].indices == (3,)
    there.drop(row)
    there.finish()


def test_what_the_other_node_has_taken_is_gone_here() -> None:
    bench, row, _ = lent()
    assert bench.handle(Claimed(row, THERE)) == [Lend(row, THERE)]
    bench.handle(Lent(row, THERE))
    bench.handle(LeaseReleased(row, THERE, has_all=True))
    assert bench.ends == {row: AttemptEnd.HANDED_OFF}
    assert bench.node.stats().num_migrated == 1
    bench.start("other", 4)
    assert row in bench.last.left, "the executor may forget it"
    bench.finish()


@pytest.mark.parametrize("is_claimed", [False, True], ids=["refused", "fetch failed"])
def test_what_the_other_node_gives_back_goes_on_here_at_the_next_index(is_claimed: bool) -> None:
    bench, row, _ = lent()
    if is_claimed:
        bench.handle(Claimed(row, THERE))
        bench.handle(Lent(row, THERE))
    commands = bench.handle(LeaseReleased(row, THERE))
    assert stayed(commands) == [Stayed(row, HERE, was_offered=True)]
    assert bench.last.attempts == (row,)
    assert bench.last.joined == (), "the executor has kept it"
    bench.step()
    assert bench.emitted[-1].indices == (3,)
    bench.drop(row)
    bench.finish()


def test_an_offer_that_nobody_claims_is_over_after_the_time_for_a_claim_though_it_is_renewed() -> None:
    bench, row, _ = lent()
    bench.now += 0.9 * bench.node.config.timers.claim_s
    bench.handle(LeasesRenewed(THERE, (row,)))
    assert stayed(bench.handle(Tick())) == []
    bench.now += 0.2 * bench.node.config.timers.claim_s
    assert stayed(bench.handle(Tick())) == [Stayed(row, HERE, was_offered=True)]
    (answer,) = [c.event for c in bench.handle(Claimed(row, THERE)) if isinstance(c, Tell)]
    assert answer == ClaimAnswered(row, HERE, granted=False)
    assert bench.last.attempts == (row,)


def test_where_the_other_node_is_lost_an_unclaimed_row_goes_on_and_a_claimed_one_is_given_up_once_fenced() -> None:
    bench, row, _ = lent()
    assert stayed(bench.handle(PeerLost(THERE))) == [Stayed(row, HERE, was_offered=True)]
    bench, row, _ = lent()
    bench.handle(Claimed(row, THERE))
    assert [c for c in bench.handle(PeerLost(THERE)) if isinstance(c, Revoke)] == [Revoke(row, THERE)]
    assert bench.ends == {}
    bench.handle(Fenced(row, THERE))
    assert bench.ends == {row: AttemptEnd.HANDED_OFF}
    bench.finish()


def test_a_row_whose_goal_is_lost_before_it_is_sealed_decodes_on() -> None:
    bench, row = leaving()
    assert stayed(bench.handle(PeerLost(ELSEWHERE))) == []
    assert stayed(bench.handle(PeerLost(THERE))) == [Stayed(row, HERE, was_offered=False)]
    bench.step()
    assert bench.last.attempts == (row,)


def test_a_row_whose_seal_fails_decodes_on() -> None:
    bench, row = leaving()
    bench.step()
    assert stayed(bench.fail_step()) == [Stayed(row, HERE, was_offered=False)]
    assert bench.last.attempts == (row,)
    bench.drop(row)
    bench.finish()


def test_a_row_that_is_called_back_and_has_run_is_not_taken_by_an_older_seal() -> None:
    bench, row = leaving(num_steps=2)
    bench.step()
    bench.step()
    sealing = bench.last
    assert sealing.seal
    assert sealing.attempts == ()
    bench.handle(PeerLost(THERE))
    assert bench.last.attempts == (row,)
    bench.handle(MigrateAsked(row, ELSEWHERE))
    bench.step()
    assert bench.node.decode.state_of(row) is DecodeState.LEAVING, "its newest step is not over"
    bench.step()
    offer = offered(bench.step())
    assert num_packed(offer.log) == sum(len(event.token_ids) for event in bench.emitted) - 1
    bench.handle(LeaseReleased(row, THERE))
    assert bench.node.prefill.knows(row), "that was somebody else"


def test_a_row_that_came_back_from_host_memory_has_no_digests() -> None:
    bench = RowBench(6, saved=8)
    old, young = bench.start("old", 8), bench.start("young", 8)
    while not bench.last.saved:
        bench.step()
    assert bench.last.saved == (young,)
    assert stayed(bench.handle(MigrateAsked(young, THERE))) == [Stayed(young, HERE, was_offered=False)]
    bench.drop(old)
    while young not in bench.last.attempts:
        bench.step()
    bench.handle(MigrateAsked(young, THERE))
    bench.step()
    assert len(bench.last.seal) == 3, "its prompt's two full blocks as well"
    offer = offered(bench.step())
    assert offer.num_preemptions == 1, "it is protected there as it was here"
    bench.drop(young)
    bench.finish()


def test_only_what_decodes_can_leave_and_not_to_where_it_is() -> None:
    bench = RowBench()
    row = bench.start("r", 6)
    unknown = AttemptId("nobody#0")
    for attempt in (row, unknown):
        assert stayed(bench.handle(MigrateAsked(attempt, THERE))) == [Stayed(attempt, HERE, was_offered=False)]
    bench.step()
    assert stayed(bench.handle(MigrateAsked(row, HERE))) == [Stayed(row, HERE, was_offered=False)]
    bench.handle(MigrateAsked(row, THERE))
    assert bench.handle(MigrateAsked(row, ELSEWHERE)) == [], "it is on its way"


@pytest.mark.parametrize("moment", ["runs", "is sealed", "is offered", "is claimed"])
def test_a_row_may_be_dropped_at_any_moment_of_its_way(moment: str) -> None:
    bench, row = leaving()
    if moment != "runs":
        bench.step()
    if moment in ("is offered", "is claimed"):
        bench.step()
    if moment == "is claimed":
        bench.handle(Claimed(row, THERE))
    bench.handle(Dropped(row))
    if moment == "is claimed":
        assert bench.ends == {}, "the reader may be copying"
        bench.handle(LeaseReleased(row, THERE, has_all=True))
    while bench.plans:
        bench.step()
    assert bench.ends == {row: AttemptEnd.DROPPED}
    bench.finish()


def test_an_answer_that_is_complete_with_its_last_step_does_not_leave() -> None:
    bench, row = leaving()
    bench.step({row: (1,)})
    assert bench.ends == {row: AttemptEnd.FINISHED}
    bench.finish()


def test_the_ledger_goes_on_where_it_was() -> None:
    _, row, offer = lent()
    assert offer.done is not None
    before = offer.done.timing
    assert before.decode_s > 0.0
    there = RowBench(node=THERE)
    there.handle(offer)
    there.handle(ClaimAnswered(row, HERE, granted=True))
    there.handle(KVArrived(row, 0))
    there.step({row: (1,)})
    (after,) = [timing for event in there.emitted for timing in event.timings]
    assert after is not None
    assert (after.admit_s, after.prefill_s) == (before.admit_s, before.prefill_s)
    assert after.decode_s > before.decode_s
    assert after.handoff_s > before.handoff_s
