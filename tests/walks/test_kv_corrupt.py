"""Walk: a byte is damaged on its way.

1. The fetch finds another digest and ends as `KVFailed(kv_corrupt)`; nothing was committed.
2. The decode node frees its blocks, releases the lease and reports.
3. The request is tried again; the client sees right tokens, or a failure, never a wrong token.
"""

from core.events import AttemptEnd, AttemptFinished, KVFailed
from core.goodput import Outcome
from tests.walks.stage import Stage, decode_node, prefill_node


def test_a_damaged_block_is_found_and_the_request_is_tried_again() -> None:
    stage = Stage(prefill_node(), decode_node())
    stage.world.place.dice.byte_flips = 1.0
    stage.once(KVFailed, lambda _: stage.world.calm_down())
    request = stage.ask("r", num_prompt_tokens=10, max_tokens=6)
    stage.until(lambda: stage.num_seen(KVFailed) == 1)
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.FINISHED
    assert ended.num_attempts == 2


def test_a_link_that_always_damages_fails_the_request_and_delivers_nothing_wrong() -> None:
    stage = Stage(prefill_node(), decode_node())
    stage.world.place.dice.byte_flips = 1.0
    request = stage.ask("r", num_prompt_tokens=10, max_tokens=6)
    stage.world.run_until_quiet(40.0)
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome in (Outcome.FAILED, Outcome.FINISHED)
    assert AttemptEnd.KV_CORRUPT in [event.end for _, event in stage.record if isinstance(event, AttemptFinished)]
