"""Walk: a request that is turned away.

1. The scheduler finds no route that can hold it, at its arrival.
2. No node is told; the gateway ends the stream with the reason.
3. A node that cannot take what it is submitted says so; its credits return, and another route is chosen.
"""

from cluster.simulated.scenario import NodePlan
from core.events import AttemptEnd, AttemptFinished, MixChanged, RequestArrived, RequestEnded, Submitted
from core.goodput import Outcome
from core.mix import mix_of
from tests.walks.stage import Stage, decode_node, prefill_node


def test_what_no_pool_can_hold_is_refused_before_any_node_hears_of_it() -> None:
    stage = Stage(prefill_node(num_blocks=4), decode_node(num_blocks=4))
    request = stage.ask("r", num_prompt_tokens=15, max_tokens=8)
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.error is not None
    assert ended.outcome is Outcome.REFUSED
    assert stage.num_seen(Submitted) == 0
    assert stage.num_seen(RequestEnded) == 1


def test_a_node_whose_mix_has_changed_refuses_and_another_answers() -> None:
    stage = Stage(NodePlan("a", "mixed", 16), NodePlan("b", "mixed", 16))
    closed = mix_of("closed", 8, 8, epoch=99)
    stage.once(RequestArrived, lambda _: [host.take(MixChanged(closed)) for host in stage.world.alive()[:1]])
    request = stage.ask("r", num_prompt_tokens=6, max_tokens=3)
    stage.until(lambda: stage.answer(request).ended is not None)
    stage.world.alive()[0].take(MixChanged(mix_of("mixed", 8, 8, epoch=100)))
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.FINISHED
    ends = [event.end for _, event in stage.record if isinstance(event, AttemptFinished)]
    assert ends.count(AttemptEnd.REFUSED) <= 1
