"""Walk: a reader that does not come.

1. The prompt is offered; the decode node is frozen, so that it neither renews nor claims.
2. One lease later the lender ends the lease on a tick and reports the attempt: its blocks are free or cached.
3. The reader wakes, and claims too late: the claim is refused, and it gives its reservation up.
4. A lease that was claimed does not end by time, however long the reader sleeps.
"""

from core.events import AttemptEnd, AttemptFinished, ClaimAnswered, Claimed, Offered, StepDone
from core.goodput import Outcome
from tests.walks.stage import Stage, decode_node, prefill_node


def test_an_offer_that_nobody_claims_expires() -> None:
    stage = Stage(prefill_node(), decode_node())
    request = stage.ask("r", num_prompt_tokens=10, max_tokens=4, tpot_s=1.0)
    stage.until(lambda: stage.num_seen(StepDone) == 1)
    reader, lease_s = stage.host("d"), stage.world.scenario.timers.lease_s
    reader.paused_until = stage.world.loop.now + 1.5 * lease_s
    stage.end()
    ends = [(event.end, where) for where, event in stage.record if isinstance(event, AttemptFinished)]
    assert AttemptEnd.KV_LOST in [end for end, _ in ends]
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome in (Outcome.FINISHED, Outcome.FAILED)


def test_a_claimed_lease_waits_for_its_reader() -> None:
    stage = Stage(prefill_node(), decode_node())
    request = stage.ask("r", num_prompt_tokens=10, max_tokens=4)
    stage.until(lambda: stage.num_seen(ClaimAnswered) == 1)
    stage.host("d").paused_until = stage.world.loop.now + 1.5 * stage.world.scenario.timers.lease_s
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.FINISHED
    assert stage.num_seen(Claimed) == stage.num_seen(Offered)
