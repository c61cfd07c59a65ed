"""Walk: the decode node dies in the middle of a stream, or is only taken for dead.

1. Tokens stop; the scheduler hears `NodeLost`, the lender `PeerLost`.
2. A claimed lease ends because its reader is gone: the transport is fenced first, then the blocks are free.
3. The gateway fences the attempt and answers with its log; whatever the old node still says counts no more.
4. The next attempt computes prompt and log, and goes on at the next index.
"""

import pytest

from core.events import AttemptLost, ClaimAnswered, Event, KVArrived, Lent, NodeLost, Offered, TokensEmitted
from core.goodput import Outcome
from tests.walks.stage import Stage, decode_node, prefill_node


@pytest.mark.parametrize("dies_in_s", [0.0, 0.3], ids=["dead", "zombie"])
@pytest.mark.parametrize("moment", [Offered, Lent, ClaimAnswered, KVArrived, TokensEmitted], ids=lambda k: k.__name__)
def test_a_stream_goes_on_after_its_decode_node(moment: type[Event], dies_in_s: float) -> None:
    stage = Stage(prefill_node(), decode_node("d"), decode_node("e"))
    times = 3 if moment is TokensEmitted else 1
    stage.once(
        moment, lambda _: stage.world.end_node(stage.host(_busy_decode_node(stage)), dies_in_s, 0.02), times=times
    )
    request = stage.ask("r", num_prompt_tokens=10, max_tokens=12)
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.FINISHED
    assert stage.num_seen(NodeLost) == 1
    assert stage.num_seen(AttemptLost) == 1
    assert ended.num_attempts == 2


def test_when_the_only_decode_node_is_gone_a_survivor_does_its_work() -> None:
    stage = Stage(prefill_node(), decode_node())
    stage.once(TokensEmitted, lambda _: stage.world.end_node(stage.host("d"), 0.0, 0.02), times=3)
    request = stage.ask("r", num_prompt_tokens=10, max_tokens=12)
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.FINISHED


def _busy_decode_node(stage: Stage) -> str:
    return next(step.rpartition(" ")[2] for step in stage.path() if step.startswith("Offered at "))
