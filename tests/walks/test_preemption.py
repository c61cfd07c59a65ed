"""Walk: the decode pool runs full.

1. The scheduler books for short answers; they turn out long.
2. A row needs a block and there is none: the youngest row of the lowest class leaves; its blocks follow its step.
3. The gateway answers with the log; the request comes back, not as a try, and goes on where it was.
4. Every answer is whole.
"""

from core.events import AttemptEnd, AttemptFinished
from core.goodput import Outcome
from tests.walks.stage import Stage, decode_node, prefill_node


def test_rows_that_are_preempted_come_back_and_finish() -> None:
    stage = Stage(prefill_node(num_blocks=32), decode_node(num_blocks=7), overcommit=True)
    requests = [stage.ask(f"r{i}", 6, max_tokens=12, first_token=i) for i in range(3)]
    stage.end()
    ends = [event.end for _, event in stage.record if isinstance(event, AttemptFinished)]
    assert AttemptEnd.PREEMPTED in ends
    ended = [stage.answer(request).ended for request in requests]
    assert [end.outcome for end in ended if end is not None] == [Outcome.FINISHED] * 3
