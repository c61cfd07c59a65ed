"""Walk: `Dropped` overtakes the message that it is about.

1. The prefill node is told to drop an attempt that it has not met: it keeps a tombstone and answers.
2. `Submitted` (or, at the decode node, `Offered`) comes after all: it is answered dropped, and computes nothing.
3. One lease later the tombstone is gone.
"""

from core.events import AttemptEnd, AttemptFinished, Dropped, Offered, StepDone, Submitted
from core.ids import SCHEDULER, AttemptId
from tests.walks.stage import Stage, decode_node, prefill_node


def test_a_submission_after_its_drop_computes_nothing() -> None:
    stage = Stage(prefill_node(), decode_node())
    request = stage.ask("r", num_prompt_tokens=10, max_tokens=4)
    held: list[Submitted] = []
    prefill = stage.host("p")
    deliver = prefill.take

    def hold_submissions(event: object) -> None:
        if isinstance(event, Submitted) and not held:
            held.append(event)
        else:
            deliver(event)  # type: ignore[arg-type]

    prefill.take = hold_submissions  # type: ignore[method-assign, assignment]
    stage.until(lambda: bool(held))
    stage.world.cancel(request)
    stage.until(lambda: "Dropped at p" in stage.path())
    deliver(held[0])
    stage.end()
    assert stage.num_seen(StepDone) == 0
    assert [event.end for _, event in stage.record if isinstance(event, AttemptFinished)].count(AttemptEnd.DROPPED) >= 1


def test_an_offer_after_its_drop_reserves_nothing() -> None:
    stage = Stage(prefill_node(), decode_node())
    request = stage.ask("r", num_prompt_tokens=10, max_tokens=4)
    stage.until(lambda: stage.num_seen(StepDone) == 1)
    attempt: AttemptId = stage.first_of(request)
    stage.host("d").take(Dropped(attempt))
    stage.until(lambda: stage.num_seen(Offered) == 1)
    stage.world.cancel(request)
    assert stage.host("d").machine.stats().blocks.reserved == 0
    stage.end()
    assert SCHEDULER in [where for where, event in stage.record if isinstance(event, AttemptFinished)]
