"""Walk: a prompt of one chunk, prefilled on one node and decoded on another.

1. The gateway opens a stream and tells the scheduler.
2. The scheduler chooses both nodes at once and submits to the prefill node.
3. One step computes the whole prompt: it is offered with its first token, which goes to the client at once.
4. The decode node reserves blocks and claims the lease.
5. The lender's transport serves the lease; the claim is granted.
6. The decode node fetches, proves and commits; the lease is released, and the prefill node's credits return.
7. The row decodes, a token a step.
8. The last token ends the stream; the decode node's credits return.
9. All is idle, and every block is free or cached.
"""

from core.events import AttemptFinished, Sealed
from tests.walks.stage import Stage, appear_in_order, decode_node, prefill_node


def test_a_prompt_of_one_chunk_moves_once_and_is_answered_whole() -> None:
    stage = Stage(prefill_node(), decode_node())
    request = stage.ask("r", num_prompt_tokens=6, max_tokens=4)
    stage.end()
    path = stage.path()
    assert appear_in_order(
        path,
        [
            "RequestArrived at scheduler",
            "Submitted at p",
            "StepDone at p",
            "Offered at d",
            "Claimed at p",
            "ClaimAnswered at d",
            "KVArrived at d",
            "LeaseReleased at p",
            "AttemptFinished at scheduler",
        ],
    )
    assert appear_in_order(
        path, ["StepDone at p", "Lent at p", "KVArrived at d", "StepDone at d", "StreamEnded at scheduler"]
    )
    assert path.count("StepDone at p") == 1
    assert stage.num_seen(Sealed) == 0
    assert stage.num_seen(AttemptFinished) == 2
    assert len(stage.answer(request).token_ids) == 4
    assert stage.world.watch.faults == {}


def test_an_answer_of_one_token_is_complete_without_a_decode_step() -> None:
    stage = Stage(prefill_node(), decode_node())
    request = stage.ask("r", num_prompt_tokens=6, max_tokens=1)
    stage.end()
    assert "StepDone at d" not in stage.path()
    assert len(stage.answer(request).token_ids) == 1
