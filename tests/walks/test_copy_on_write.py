"""Walk: the same prompt again, while the first answer is being written behind it.

1. On a node that decodes too, the prompt's last block is filled up by the first answer.
2. Its first tokens are final: the second attempt takes a block of its own and copies them into it.
3. It computes the prompt's last token, whose logits it needs, and nothing else.
4. Both write on, each in its own block.
"""

import pytest

from cluster.simulated.scenario import NodePlan
from core.events import RequestCancelled, StepDone, TokensEmitted
from tests.walks.stage import Stage, decode_node, prefill_node


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("num_prompt_tokens", range(1, 10))
def test_two_answers_grow_behind_one_prompt(num_prompt_tokens: int, num_steps: int) -> None:
    stage = Stage(NodePlan("m", "mixed", 16, 32, 8, num_steps))
    first = stage.ask("first", num_prompt_tokens, max_tokens=9)
    stage.until(lambda: len(stage.answer(first).token_ids) >= 2)
    second = stage.ask("second", num_prompt_tokens, max_tokens=7)
    stage.end()
    assert len(stage.answer(first).token_ids) == 9
    assert stage.num_cached(second) == num_prompt_tokens - 1


@pytest.mark.parametrize("num_prompt_tokens", range(1, 10))
def test_a_tail_that_was_handed_over_is_copied_at_the_prefill_node(num_prompt_tokens: int) -> None:
    stage = Stage(prefill_node(tokens_per_step=4), decode_node())
    first = stage.ask("first", num_prompt_tokens, max_tokens=3)
    stage.until(lambda: stage.answer(first).ended is not None)
    second = stage.ask("second", num_prompt_tokens, max_tokens=7)
    stage.end()
    assert stage.num_cached(second) == num_prompt_tokens - 1


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("whose", ["first", "second"])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_whoever_leaves_the_other_one_goes_on(whose: str, times: int, num_steps: int) -> None:
    stage = Stage(NodePlan("m", "mixed", 16, 32, 8, num_steps))
    requests = {"first": stage.ask("first", 6, max_tokens=9)}
    stage.until(lambda: stage.num_seen(TokensEmitted) == 2)
    stage.once(StepDone, lambda _: stage.world.cancel(requests[whose]), times=times)
    requests["second"] = stage.ask("second", 6, max_tokens=9)
    stage.end()
    assert stage.num_seen(RequestCancelled) == 1
    spared = stage.answer(requests["second" if whose == "first" else "first"])
    assert len(spared.token_ids) == 9
