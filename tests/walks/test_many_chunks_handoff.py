"""Walk: a prompt of several chunks; the blocks of one move while the next is computed.

1. Each step of the prefill node computes one chunk.
2. The first chunk is offered; the decode node reserves, claims, and fetches what is sealed.
3. Each later chunk is told of as `Sealed`, with the new blocks only; a fetch follows.
4. The last one brings the number of tokens and the first token.
5. Only when every piece has arrived does the row decode.
"""

import pytest

from core.events import NodeEvent, Offered, Sealed, StepDone, StreamSilent
from core.goodput import Outcome
from tests.walks.stage import Stage, appear_in_order, decode_node, prefill_node


@pytest.mark.parametrize("num_prompt_tokens", [7, 8, 9, 15, 16, 17])
def test_chunks_move_while_later_ones_are_computed(num_prompt_tokens: int) -> None:
    stage = Stage(prefill_node(tokens_per_step=4), decode_node())
    stage.ask("r", num_prompt_tokens, max_tokens=5)
    stage.end()
    path = stage.path()
    assert appear_in_order(
        path, ["Offered at d", "KVArrived at d", "StepDone at p", "Sealed at d", "KVArrived at d", "StepDone at d"]
    )
    assert stage.num_seen(Offered) == 1
    sent = [event.handle for _, event in stage.record if isinstance(event, Offered | Sealed)]
    assert [handle.first_block for handle in sent] == [0, *[handle.end_block for handle in sent[:-1]]]
    assert sent[-1].end_block == -(-num_prompt_tokens // 4)
    last_arrival = len(path) - path[::-1].index("KVArrived at d")
    first_decode = path.index("StepDone at d")
    assert last_arrival <= first_decode
    assert stage.num_seen(StepDone) == -(-num_prompt_tokens // 4) + 4


def test_a_part_that_overtakes_its_offer_is_kept_for_it() -> None:
    stage = Stage(prefill_node(tokens_per_step=4), decode_node())
    request = stage.ask("r", 12, max_tokens=3)
    decode = stage.host("d")
    deliver, held = decode.take, list[Offered]()

    def hold_the_offer(event: NodeEvent) -> None:
        if isinstance(event, Offered):
            held.append(event)
        else:
            deliver(event)
            if isinstance(event, Sealed) and event.done is not None:
                deliver(held[0])

    decode.take = hold_the_offer  # type: ignore[method-assign]
    stage.end()
    ended = stage.answer(request).ended
    assert ended is not None and ended.outcome is Outcome.FINISHED
    assert ended.num_attempts == 1
    assert stage.num_seen(StreamSilent) == 0
