"""Rows that give way to host memory: when they go, what they hold meanwhile, when they come back, how they end."""

import pytest

from core.commands import Command
from core.events import AttemptEnd, Claimed, Offered
from core.ids import AttemptId, LayoutId, NodeId, RequestId
from core.kv import KVHandle
from core.lifecycle import DecodeState
from core.request import Prompt, Request, SamplingParams, pack_tokens
from decode_worker.config import PreemptionCosts
from tests.machines.row_bench import DEAR_COPIES, G, RowBench


def crowded(num_blocks: int = 5, **config: object) -> tuple[RowBench, AttemptId, AttemptId]:
    """Two rows of two full blocks each: the older one has got a third for its tokens, and that was the last."""
    bench = RowBench(num_blocks, **{"saved": 8, **config})  # type: ignore[arg-type]
    rows = bench.start("old", 8), bench.start("young", 8)
    bench.step()
    bench.step()
    return bench, *rows


def test_the_youngest_row_is_copied_out_and_its_blocks_stay_its_own_until_that_step_is_over() -> None:
    bench, old, young = crowded()
    assert (bench.last.saved, bench.last.attempts) == ((young,), (old,))
    assert bench.node.decode.state_of(young) is DecodeState.SAVED
    assert bench.node.stats().blocks.in_use == 5
    bench.step()
    assert bench.node.stats().blocks.in_use == 3
    assert bench.ends == {}, "it is still here, and known"
    assert bench.node.decode.knows(young)
    stats = bench.node.stats()
    assert (stats.num_saved, stats.num_restored, stats.num_preempted) == (1, 0, 0)


def test_it_comes_back_with_as_many_blocks_as_soon_as_there_are_enough_and_goes_on_at_once() -> None:
    bench, old, young = crowded()
    bench.step()
    bench.drop(old)
    bench.step()
    (growth,) = bench.last.restored
    assert (growth.attempt, len(growth.block_ids)) == (young, 2)
    assert bench.last.attempts == (young,)
    assert len(bench.last.grown[0].block_ids) == 1, "for its next token"
    assert bench.last.left == (old,)
    assert bench.node.stats().num_restored == 1
    bench.step({young: (20,)})
    assert bench.emitted[-1].indices == (1,)
    bench.drop(young)
    bench.finish()


@pytest.mark.parametrize(
    ("costs", "saved"), [(DEAR_COPIES, 8), (None, 8), (PreemptionCosts(0.004, 0.0005, 0.0, 0.0001), 1)]
)
def test_where_copies_are_dear_or_host_memory_is_full_it_is_computed_again(
    costs: PreemptionCosts | None, saved: int
) -> None:
    bench, old, young = crowded(costs=costs, saved=saved)
    assert bench.ends == {young: AttemptEnd.PREEMPTED}
    assert bench.last.attempts == (old,)
    assert bench.last.saved == ()
    assert bench.node.stats().num_preempted == 1


def test_a_row_that_has_outgrown_the_pool_goes_where_it_fits_instead_of_waiting_for_ever() -> None:
    bench = RowBench(3, saved=8)
    row = bench.start("r", 8)
    while bench.plans:
        bench.step()
    assert bench.ends == {row: AttemptEnd.PREEMPTED}
    assert bench.emitted[-1].indices == (4,), "12 tokens have KV: all that three blocks hold"


def test_a_victim_that_runs_is_left_out_of_the_next_step_and_saved_by_the_one_after() -> None:
    bench, old, young = crowded(6, num_steps=2)
    while not any(plan.saved for plan in bench.plans):
        running = {attempt for plan in bench.plans for attempt in plan.attempts}
        bench.step()
        assert bench.ends == {}
    assert bench.last.saved == (young,)
    assert young not in {attempt for plan in list(bench.plans)[:-1] for attempt in plan.attempts}
    assert running >= {young}
    while bench.plans and old not in bench.last.attempts:
        bench.step()
    assert old in bench.last.attempts


def test_rows_return_oldest_first_and_no_younger_one_overtakes() -> None:
    bench = RowBench(9, saved=16)
    rows = [bench.start(name, num_tokens) for name, num_tokens in (("a", 12), ("b", 12), ("c", 8))]
    while bench.node.stats().num_saved < 2:
        bench.step()
    bench.step()
    out = [row for row in rows if bench.node.decode.state_of(row) is DecodeState.SAVED]
    assert out == rows[1:]
    back: list[AttemptId] = []
    bench.drop(rows[0])
    while len(back) < 2:
        back += [growth.attempt for growth in bench.last.restored]
        bench.step()
    assert back == rows[1:]


def test_a_row_that_came_back_is_not_the_next_to_go_while_younger_ones_run() -> None:
    bench, old, _ = crowded(9)
    younger = bench.start("younger", 8)
    gone: list[AttemptId] = []
    for _ in range(24):
        gone += [*bench.last.saved]
        bench.step()
    assert gone[0] == younger
    assert old not in gone


@pytest.mark.parametrize("is_out", [False, True], ids=["on its way out", "out"])
@pytest.mark.parametrize("fault", ["drop", "failed step"])
def test_a_saved_row_ends_once_whatever_befalls_it(is_out: bool, fault: str) -> None:
    bench, old, young = crowded()
    if is_out:
        bench.step()
    if fault == "drop":
        bench.drop(young)
        assert (young in bench.ends) == is_out, "only a step delays its end"
        bench.step()
        assert bench.ends == {young: AttemptEnd.DROPPED}
        assert any(young in plan.left for plan in bench.plans), "its copy may be forgotten"
    else:
        bench.fail_step()
        lost = (old,) if is_out else (old, young)
        assert bench.ends == dict.fromkeys(lost, AttemptEnd.STEP_FAILED)
        assert bench.node.decode.knows(young) == is_out, "the copy of an earlier step is sound"
    for row in (old, young):
        if bench.node.decode.knows(row):
            bench.drop(row)
    bench.finish()


def test_a_row_whose_way_back_fails_is_lost_with_the_step() -> None:
    bench, old, young = crowded()
    bench.step()
    bench.drop(old)
    bench.step()
    assert bench.last.restored
    bench.fail_step()
    assert bench.ends[young] is AttemptEnd.STEP_FAILED
    bench.finish()


def test_prompts_wait_while_a_row_is_out() -> None:
    bench, old, young = crowded()
    bench.step()
    late = bench.start("late", 2)
    assert bench.node.stats().blocks.free > 0
    for _ in range(2):
        assert not any(late in plan.attempts for plan in bench.plans)
        bench.step()
    bench.drop(old)
    bench.step()
    assert [growth.attempt for growth in bench.last.restored] == [young]
    bench.drop(young)
    bench.drop(late)
    bench.finish()


def offer(name: str, num_tokens: int) -> Offered:
    """Another node's prefill, of which one block is sealed."""
    sampling, ids = SamplingParams(8), pack_tokens(range(10, 10 + num_tokens))
    request = Request(RequestId(name), Prompt(num_tokens), ids, sampling)
    attempt, lender = AttemptId(f"{name}#0"), NodeId("there@0")
    handle = KVHandle(attempt, lender, LayoutId("l"), 0, (0,), (1,), (b"d" * 16,))
    return Offered(attempt, request, b"", G, handle, None)


def claims(commands: list[Command]) -> int:
    """How many attempts were admitted."""
    return sum(isinstance(getattr(command, "event", None), Claimed) for command in commands)


def test_attempts_on_their_way_in_wait_behind_rows_that_lack_blocks() -> None:
    bench, old, young = crowded()
    bench.step()
    assert bench.node.stats().blocks.free > 0
    assert claims(bench.handle(offer("late", 2))) == 0
    bench.drop(old)
    commands = bench.step()
    assert [growth.attempt for growth in bench.last.restored] == [young]
    assert claims(commands) == 1


def test_a_row_that_fails_alone_ends_alone_and_a_step_planned_ahead_harms_no_other() -> None:
    bench = RowBench(num_steps=2)
    one, other = bench.start("r", 4), bench.start("s", 4)
    while len(bench.plans) < 2 or not all({one, other} <= set(plan.attempts) for plan in bench.plans):
        bench.step()
    bench.step(failed=(one,))
    assert bench.ends == {}, "the next step may write its blocks"
    assert bench.emitted[-1].attempts == (other,)
    bench.step(failed=(one,))
    assert bench.ends == {one: AttemptEnd.STEP_FAILED}
    assert bench.node.decode.knows(other)
    bench.drop(other)
    bench.finish()


def test_the_row_of_a_failed_row_is_not_found_by_others() -> None:
    bench = RowBench()
    row = bench.start("r", 8)
    bench.step()
    bench.step(failed=(row,))
    assert bench.node.stats().blocks.cached == 0
