"""Walk: the client leaves, at any moment.

1. The gateway ends the stream at once and tells the scheduler.
2. The scheduler tells both nodes `Dropped`, whatever state the attempt is in there.
3. What is idle is free at once; what is in a step or a fetch, when that has ended; a claimed lease, at its release.
4. Both nodes answer `AttemptFinished`; only then do the credits return.
"""

import pytest

from core.events import (
    AttemptFinished,
    ClaimAnswered,
    Claimed,
    Event,
    KVArrived,
    LeaseReleased,
    Lent,
    Offered,
    RequestArrived,
    Sealed,
    StepDone,
    Submitted,
    TokensEmitted,
)
from core.goodput import Outcome
from tests.walks.stage import Stage, decode_node, prefill_node

MOMENTS: tuple[type[Event], ...] = (
    RequestArrived,
    Submitted,
    StepDone,
    Offered,
    Claimed,
    Lent,
    ClaimAnswered,
    KVArrived,
    Sealed,
    TokensEmitted,
    LeaseReleased,
)


@pytest.mark.parametrize("fenced_transport", [False, True], ids=["shm", "fenced"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda kind: kind.__name__)
def test_a_request_may_be_cancelled_at_any_moment(moment: type[Event], times: int, fenced_transport: bool) -> None:
    stage = Stage(prefill_node(tokens_per_step=4), decode_node(), fenced_transport=fenced_transport)
    stage.once(moment, lambda _: stage.world.cancel(request), times=times)
    request = stage.ask("r", num_prompt_tokens=14, max_tokens=8)
    other = stage.ask("s", num_prompt_tokens=10, max_tokens=6, first_token=3)
    stage.end()
    answer, spared = stage.answer(request), stage.answer(other)
    assert answer.ended is not None and answer.ended.outcome is Outcome.CANCELLED
    assert spared.ended is not None and spared.ended.outcome is Outcome.FINISHED
    assert stage.num_seen(AttemptFinished) <= 4


def test_the_gateway_ends_a_cancelled_stream_without_waiting_for_anyone() -> None:
    stage = Stage(prefill_node(), decode_node())
    request = stage.ask("r", num_prompt_tokens=6, max_tokens=8)
    stage.until(lambda: stage.num_seen(Submitted) == 1)
    stage.world.cancel(request)
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.CANCELLED
    stage.end()
