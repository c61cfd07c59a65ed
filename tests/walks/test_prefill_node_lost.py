"""Walk: the prefill node dies.

1. Its process ends; messages to it and half of those from it are lost, fetches from it fail.
2. The decode node hears `PeerLost`, gives its reservation up, and reports the attempt.
3. The scheduler hears `NodeLost`; the gateway fences the attempt and answers with what it has delivered.
4. The next attempt computes prompt and log elsewhere; the client sees a pause, and no token twice.
"""

import pytest

from core.events import (
    AttemptLost,
    ClaimAnswered,
    Claimed,
    Event,
    KVArrived,
    Lent,
    NodeLost,
    Offered,
    StepDone,
    Submitted,
)
from core.goodput import Outcome
from tests.walks.stage import Stage, decode_node, prefill_node


@pytest.mark.parametrize(
    "moment", [Submitted, StepDone, Offered, Claimed, Lent, ClaimAnswered], ids=lambda k: k.__name__
)
def test_a_request_survives_its_prefill_node(moment: type[Event]) -> None:
    stage = Stage(prefill_node("p"), prefill_node("q"), decode_node())
    stage.once(moment, lambda _: stage.world.end_node(stage.host(_busy_prefill_node(stage)), 0.0, 0.05))
    request = stage.ask("r", num_prompt_tokens=14, max_tokens=6)
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.FINISHED
    assert stage.num_seen(NodeLost) == 1
    assert stage.num_seen(AttemptLost) == 1
    assert ended.num_attempts <= 2


def test_a_row_that_has_all_its_blocks_does_not_care() -> None:
    stage = Stage(prefill_node(), prefill_node("q"), decode_node())
    request = stage.ask("r", num_prompt_tokens=14, max_tokens=6)
    stage.until(lambda: stage.num_seen(KVArrived) == 1)
    stage.until(lambda: "LeaseReleased at p" in stage.path() or "LeaseReleased at q" in stage.path())
    stage.until(lambda: "AttemptFinished at scheduler" in stage.path())
    stage.world.end_node(stage.host(_busy_prefill_node(stage)), 0.0, 0.02)
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.FINISHED
    assert ended.num_attempts == 1


def _busy_prefill_node(stage: Stage) -> str:
    return next(step.rpartition(" ")[2] for step in stage.path() if step.startswith("Submitted at "))
