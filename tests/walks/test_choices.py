"""Walk: several answers to one prompt.

1. Each choice is a request of its own, with its own attempt.
2. The scheduler sends them after each other to the node that computes the prompt.
3. The first one computes it; the others wait, then share its full blocks and copy the last one.
4. Each of them costs one step of one token before its first token.
5. Each answer is the one that its choice would have got alone.
"""

import pytest

from cluster.simulated.scenario import NodePlan
from core.goodput import Outcome
from core.ids import RequestId
from tests.walks.stage import Stage, decode_node, prefill_node

NUM_CHOICES = 4


def ask_all(stage: Stage, num_prompt_tokens: int) -> list[RequestId]:
    return [stage.ask(f"c{i}", num_prompt_tokens, max_tokens=5, choice=i) for i in range(NUM_CHOICES)]


@pytest.mark.parametrize("num_prompt_tokens", [1, 4, 5, 11, 12, 13])
@pytest.mark.parametrize("layout", ["disaggregated", "aggregated"])
def test_choices_cost_one_prefill_and_one_token_each(layout: str, num_prompt_tokens: int) -> None:
    both = (prefill_node("a", 32, 8), prefill_node("b", 32, 8), decode_node(num_blocks=32))
    one = (NodePlan("a", "mixed", 32, 8), NodePlan("b", "mixed", 32, 8))
    stage = Stage(*(both if layout == "disaggregated" else one))
    choices = ask_all(stage, num_prompt_tokens)
    stage.end()
    told = sorted(stage.num_cached(choice) for choice in choices)
    assert told == [0, *[num_prompt_tokens - 1] * (NUM_CHOICES - 1)]
    counts = [stage.host(name).machine.stats() for name in ("a", "b")]
    assert sorted(count.num_prompt_tokens for count in counts) == [0, NUM_CHOICES * num_prompt_tokens]


def test_when_the_node_that_computes_is_lost_all_choices_are_answered_by_another() -> None:
    stage = Stage(prefill_node("a", 32, 4), prefill_node("b", 32, 4), decode_node(num_blocks=32))
    choices = ask_all(stage, 13)
    stage.until(lambda: stage.host("a").machine.prefill.num_prefilling == 1)
    stage.world.end_node(stage.host("a"), dies_in_s=0.0, known_in_s=0.01)
    stage.end()
    ended = [stage.answer(choice).ended for choice in choices]
    assert [end.outcome for end in ended if end is not None] == [Outcome.FINISHED] * NUM_CHOICES
    counts = stage.host("b").machine.stats()
    assert counts.num_prompt_tokens - counts.num_cached_tokens == 13 + NUM_CHOICES - 1
