"""Walk: a prompt that begins as another one did.

1. The first prompt is computed; its full blocks are named by their content.
2. It is over: its blocks stay, cached, until somebody needs the room.
3. The second prompt shares what it has in common with the first, and computes the rest.
4. If it comes while the first is being computed, it waits for what they have in common; others go past it.
5. Both answers are those of one node that does nothing else.
"""

import pytest

from core.events import Submitted
from tests.walks.stage import Stage, decode_node, prefill_node


@pytest.mark.parametrize("num_common", [3, 4, 9, 12])
def test_the_second_of_two_prompts_computes_only_what_the_first_had_not(num_common: int) -> None:
    stage = Stage(prefill_node(), decode_node())
    first = stage.ask("first", num_common, max_tokens=4)
    stage.until(lambda: stage.answer(first).ended is not None)
    second = stage.ask("second", 14, max_tokens=4)
    stage.end()
    assert stage.num_cached(first) == 0
    assert stage.num_cached(second) == num_common // 4 * 4


def test_a_prompt_that_comes_meanwhile_waits_for_the_common_part_and_others_go_past_it() -> None:
    stage = Stage(prefill_node(tokens_per_step=8), decode_node())
    first = stage.ask("first", 16, max_tokens=4)
    second = stage.ask("second", 14, max_tokens=4)
    other = stage.ask("other", 4, max_tokens=4, first_token=4)
    stage.until(lambda: stage.num_seen(Submitted) == 3)
    stage.end()
    assert [stage.num_cached(request) for request in (first, second, other)] == [0, 12, 0]
    prefill = stage.host("p").machine.prefill
    assert (prefill.num_prompt_tokens, prefill.num_cached_tokens) == (34, 12)
    answers = [stage.answer(request) for request in (first, second, other)]
    assert [answer.first_at for answer in answers] == sorted(answer.first_at or 0.0 for answer in answers)


def test_another_node_knows_nothing_of_it() -> None:
    stage = Stage(prefill_node("p1"), prefill_node("p2"), decode_node())
    requests = [stage.ask("first", 16, max_tokens=4), stage.ask("second", 14, max_tokens=4)]
    stage.end()
    assert [stage.num_cached(request) for request in requests] == [0, 0]
    counts = [stage.host(name).machine.prefill.num_prompt_tokens for name in ("p1", "p2")]
    assert sorted(counts) == [14, 16], "each went where nothing waited"
