"""Walk: a row goes on at another node in the middle of its stream.

1. The scheduler books at the other node, then asks the row's node (`MigrateAsked`).
2. The row runs no further step; the next step seals its blocks, the begun one too; the node's lender has it then.
3. `Offered` carries the whole log, and ends like a prefill whose token is the newest one; then as in any handoff.
4. The other node goes on at the next index under the same attempt's name; the first reports it handed off.
5. Whatever goes wrong before the other node has all: the row goes on where it was, or the attempt begins anew.
"""

from dataclasses import replace

import pytest

from cluster.simulated.host import Dice
from core.events import (
    AttemptFinished,
    AttemptLost,
    ClaimAnswered,
    Claimed,
    Event,
    KVArrived,
    LeaseReleased,
    Lent,
    MigrateAsked,
    Offered,
    Overridden,
    RequestResumed,
    Stayed,
    StepDone,
    Submitted,
    TokensEmitted,
)
from core.goodput import Outcome
from core.ids import SCHEDULER, RequestId
from core.mix import mix_of
from tests.walks.stage import Stage, appear_in_order, decode_node, prefill_node

MOMENTS: tuple[type[Event], ...] = (MigrateAsked, Offered, Claimed, Lent, ClaimAnswered, KVArrived, LeaseReleased)


def drain(stage: Stage, name: str) -> None:
    """The operator wants a node empty."""
    stage.world.drain(stage.host(name).node)


def reopen(stage: Stage, name: str) -> None:
    """The operator wants it back."""
    stage.world.tell(SCHEDULER, Overridden((stage.host(name).node,), (mix_of("decode", 8, 8),)))


def on_its_way(steps_in_flight: int = 1, max_draft_tokens: int = 0, fenced: bool = False) -> tuple[Stage, RequestId]:
    """A stream at d; once it has 3 tokens, d drains, and e is there."""
    plans = [
        replace(plan, max_steps_in_flight=steps_in_flight, max_draft_tokens=max_draft_tokens)
        for plan in (prefill_node(), decode_node("d"), decode_node("e"))
    ]
    stage = Stage(*plans, fenced_transport=fenced)
    stage.once(TokensEmitted, lambda _: drain(stage, "d"), times=3)
    return stage, stage.ask("r", num_prompt_tokens=10, max_tokens=20)


def when(stage: Stage, moment: type[Event], react: object) -> None:
    """At this moment of the migration; those of a handoff come a second time then."""
    assert callable(react)
    stage.once(moment, lambda _: react(), times=1 if moment is MigrateAsked else 2)


def is_whole(stage: Stage, request: RequestId) -> bool:
    """Whether the answer is complete; that it is right is compared as it comes."""
    ended = stage.answer(request).ended
    return ended is not None and ended.outcome is Outcome.FINISHED and ended.num_tokens == 20


@pytest.mark.parametrize("max_draft_tokens", [0, 3])
@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_stream_goes_on_at_another_node_and_the_client_notices_a_pause_at_most(
    steps_in_flight: int, max_draft_tokens: int
) -> None:
    stage, request = on_its_way(steps_in_flight, max_draft_tokens)
    stage.end()
    steps = [
        "MigrateAsked at d", "StepDone at d", "Offered at e", "Claimed at d", "Lent at d", "ClaimAnswered at e",
        "KVArrived at e", "LeaseReleased at d", "StepDone at e",
    ]  # fmt: skip
    assert appear_in_order(stage.path(), steps)
    assert is_whole(stage, request)
    assert (stage.num_seen(Submitted), stage.num_seen(AttemptLost), stage.num_seen(Stayed)) == (1, 0, 0)
    ended = stage.answer(request).ended
    assert ended is not None
    assert ended.num_attempts == 1
    assert stage.host("d").machine.stats().num_migrated == 1


def test_no_token_is_told_twice_and_none_is_computed_again() -> None:
    stage, request = on_its_way()
    stage.end()
    said = [event for _, event in stage.record if isinstance(event, TokensEmitted)]
    assert [index for event in said for index in event.indices] == list(range(20))
    d, e = stage.host("d").machine.stats(), stage.host("e").machine.stats()
    assert d.num_prompt_tokens == e.num_prompt_tokens == 0, "nobody computed a prompt but the prefill node"
    assert is_whole(stage, request)


def test_a_row_may_move_again_and_again_and_back_to_where_it_was() -> None:
    stage, request = on_its_way()
    stage.until(lambda: stage.host("d").machine.stats().num_migrated == 1)
    for here, there in (("e", "d"), ("d", "e"), ("e", "d")):
        before = stage.host(here).machine.stats().num_migrated
        reopen(stage, there)
        drain(stage, here)
        stage.until(lambda name=here, n=before: stage.host(name).machine.stats().num_migrated == n + 1)  # type: ignore[misc]
    stage.end()
    assert is_whole(stage, request)
    assert stage.num_seen(AttemptLost) == 0


@pytest.mark.parametrize("fenced", [False, True], ids=["shm", "fenced"])
@pytest.mark.parametrize("moment", [*MOMENTS, StepDone], ids=lambda kind: kind.__name__)
def test_the_client_may_leave_at_any_moment_of_it(moment: type[Event], fenced: bool) -> None:
    stage, request = on_its_way(fenced=fenced)
    if moment is StepDone:
        stage.once(
            MigrateAsked, lambda _: stage.once(StepDone, lambda _: stage.world.cancel(request), times=2), times=1
        )
    else:
        when(stage, moment, lambda: stage.world.cancel(request))
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None
    assert ended.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("dies_in_s", [0.0, 0.3], ids=["dead", "zombie"])
@pytest.mark.parametrize("name", ["d", "e"], ids=["where it was", "where it goes"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda kind: kind.__name__)
def test_either_node_may_die_at_any_moment_of_it(moment: type[Event], name: str, dies_in_s: float) -> None:
    stage, request = on_its_way()
    when(stage, moment, lambda: stage.world.end_node(stage.host(name), dies_in_s, 0.02))
    stage.end()
    assert is_whole(stage, request)


@pytest.mark.parametrize("fenced", [False, True], ids=["shm", "fenced"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda kind: kind.__name__)
def test_the_link_between_them_may_be_cut_at_any_moment_of_it(moment: type[Event], fenced: bool) -> None:
    stage, request = on_its_way(fenced=fenced)
    when(stage, moment, lambda: stage.world.sever(stage.host("d"), stage.host("e")))
    stage.end()
    assert is_whole(stage, request)


def test_where_a_byte_is_damaged_on_the_way_the_row_goes_on_where_it_was() -> None:
    stage, request = on_its_way()
    when(stage, ClaimAnswered, lambda: setattr(stage.world.place, "dice", Dice(byte_flips=1.0)))
    stage.once(Stayed, lambda _: setattr(stage.world.place, "dice", Dice()))
    stage.end()
    assert is_whole(stage, request)
    assert (stage.num_seen(AttemptLost), stage.num_seen(RequestResumed), stage.num_seen(Submitted)) == (0, 0, 1)
    assert stage.host("e").machine.stats().num_steps == 0


def test_where_the_other_node_has_no_blocks_after_all_the_row_goes_on_where_it_was() -> None:
    stage, request = on_its_way()
    pool = stage.host("e").machine.pool
    stage.until(lambda: stage.num_seen(MigrateAsked) == 1)
    held = pool._free
    pool._free = []
    stage.until(lambda: stage.num_seen(Stayed) == 1)
    pool._free = held
    stage.end()
    assert is_whole(stage, request)
    assert stage.num_seen(AttemptLost) == 0
    ends = [event.end.value for _, event in stage.record if isinstance(event, AttemptFinished)]
    assert sorted(ends) == ["dropped", "finished", "handed_off"]
