"""Walk: the decode pool runs full, and host memory is near.

1. A row needs a block and there is none; the youngest row of the lowest class is copied out by the next step.
2. When that step is over its blocks go to others; the row is still here, and nobody is told anything.
3. When there are enough blocks again the next step copies it back into others, and it runs in the same step.
4. Every answer is whole, and no prompt was computed twice.
"""

import pytest

from cluster.simulated.scenario import NodePlan
from core.events import AttemptEnd, AttemptFinished, Dropped, StepDone, Submitted
from core.goodput import Outcome
from core.ids import RequestId
from core.lifecycle import DecodeState
from tests.walks.stage import Stage, prefill_node


def small_pool(steps_in_flight: int = 1, copy_s_per_block: float = 0.0001) -> Stage:
    """A decode node with 7 blocks, and twice as many in host memory."""
    decode = NodePlan("d", "decode", 7, 8, 8, steps_in_flight, max_saved_blocks=14, copy_s_per_block=copy_s_per_block)
    return Stage(prefill_node(num_blocks=32), decode, overcommit=True)


def ask_for_too_much(stage: Stage) -> list[RequestId]:
    """Three answers of which the pool holds two."""
    return [stage.ask(f"r{i}", 6, max_tokens=12, first_token=i) for i in range(3)]


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_rows_are_saved_and_restored_and_nobody_else_hears_of_it(steps_in_flight: int) -> None:
    stage = small_pool(steps_in_flight)
    requests = ask_for_too_much(stage)
    stage.end()
    ends = [event.end for _, event in stage.record if isinstance(event, AttemptFinished)]
    assert set(ends) == {AttemptEnd.FINISHED, AttemptEnd.HANDED_OFF}
    assert stage.num_seen(Submitted) == 3
    assert all(len(stage.answer(request).token_ids) == 12 for request in requests)
    stats = stage.host("d").machine.stats()
    assert stats.num_saved == stats.num_restored > 0
    assert stats.num_preempted == 0


def test_where_copies_are_dear_the_prompt_is_computed_again() -> None:
    stage = small_pool(copy_s_per_block=1.0)
    ask_for_too_much(stage)
    stage.end()
    stats = stage.host("d").machine.stats()
    assert (stats.num_saved, stats.num_preempted > 0) == (0, True)


@pytest.mark.parametrize("is_out", [False, True], ids=["on its way out", "out"])
def test_a_client_may_leave_while_its_row_is_saved(is_out: bool) -> None:
    stage = small_pool()
    requests = ask_for_too_much(stage)
    machine = stage.host("d").machine

    def saved() -> list[RequestId]:
        rows = [row for row in machine.decode.attempts if machine.decode.state_of(row) is DecodeState.SAVED]
        return [request for request in requests if any(row.startswith(f"{request}#") for row in rows)]

    stage.until(lambda: bool(saved()))
    if is_out:
        num_steps = stage.num_seen(StepDone)
        stage.until(lambda: stage.num_seen(StepDone) > num_steps + 1 and bool(saved()))
    left = saved()[0]
    stage.world.cancel(left)
    stage.until(lambda: any(isinstance(event, Dropped) and where == "d@0" for where, event in stage.record))
    stage.end()
    outcomes = {request: stage.answer(request).ended for request in requests}
    assert {request for request, ended in outcomes.items() if ended and ended.outcome is Outcome.CANCELLED} == {left}


def test_a_node_that_dies_takes_its_host_memory_along_and_every_answer_is_whole() -> None:
    stage = small_pool()
    requests = ask_for_too_much(stage)
    machine = stage.host("d").machine
    stage.until(lambda: machine.stats().num_saved > 0)
    stage.world.end_node(stage.host("d"), 0.0, 0.01)
    stage.end()
    assert all(len(stage.answer(request).token_ids) == 12 for request in requests)
    assert stage.num_seen(Submitted) > 3
