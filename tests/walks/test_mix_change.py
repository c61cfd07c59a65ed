"""Walk: the operator changes the mixes while everything is busy.

1. Half of the requests are under way: queued, prefilling, offered, decoding.
2. Prefill nodes become decode nodes and the other way round; the scheduler tells them, epoch by epoch.
3. Resident work is not touched: it finishes where it is.
4. New work goes by the new mixes; what was submitted by the old ones is refused and routed again.
"""

import pytest

from core.events import Event, MixChanged, Offered, Overridden, RequestArrived, StepDone, TokensEmitted
from core.goodput import Outcome
from core.ids import SCHEDULER
from core.mix import mix_of
from tests.walks.stage import Stage, decode_node, prefill_node


@pytest.mark.parametrize("moment", [RequestArrived, StepDone, Offered, TokensEmitted], ids=lambda kind: kind.__name__)
def test_roles_change_while_busy_and_every_answer_is_whole(moment: type[Event]) -> None:
    stage = Stage(prefill_node(tokens_per_step=4), decode_node())
    stage.once(moment, lambda _: _swap(stage), times=3)
    requests = [stage.ask(f"r{i}", 8 + i, max_tokens=5, first_token=i) for i in range(6)]
    stage.end()
    ended = [stage.answer(request).ended for request in requests]
    assert [end.outcome for end in ended if end is not None] == [Outcome.FINISHED] * 6
    assert stage.num_seen(MixChanged) >= 2


def _swap(stage: Stage) -> None:
    nodes = (stage.host("p").node, stage.host("d").node)
    stage.world.tell(SCHEDULER, Overridden(nodes, (mix_of("decode", 8, 8), mix_of("prefill", 8, 8))))
