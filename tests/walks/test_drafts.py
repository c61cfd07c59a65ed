"""Walk: a row guesses what it will say.

1. A decode step computes a few guessed tokens behind the next one; the model confirms those that it would have said.
2. What is confirmed goes to the client in one message; what is not was never said.
3. The answer is the same as without guesses, in fewer steps.
"""

import pytest

from cluster.simulated.scenario import NodePlan
from core.events import StepDone, TokensEmitted
from tests.walks.stage import Stage, prefill_node


def answered(max_draft_tokens: int, steps_in_flight: int, num_requests: int = 3) -> tuple[Stage, list[list[int]]]:
    """A run, and what its clients got."""
    decode = NodePlan("d", "decode", 64, 8, 8, steps_in_flight, max_draft_tokens)
    stage = Stage(prefill_node(num_blocks=32), decode)
    requests = [stage.ask(f"r{i}", 7, max_tokens=16, first_token=i) for i in range(num_requests)]
    stage.end()
    return stage, [stage.answer(request).token_ids for request in requests]


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_guesses_change_no_answer_and_save_steps(steps_in_flight: int) -> None:
    plain, right = answered(0, steps_in_flight)
    guessing, token_ids = answered(4, steps_in_flight)
    assert token_ids == right
    stats = guessing.host("d").machine.stats()
    assert stats.num_drafted > stats.num_accepted > 0
    if steps_in_flight == 1:
        assert guessing.num_seen(StepDone) < plain.num_seen(StepDone)


def test_tokens_of_one_row_in_one_message_have_consecutive_places() -> None:
    stage, _ = answered(4, 1, num_requests=1)
    messages = [event for _, event in stage.record if isinstance(event, TokensEmitted)]
    assert any(len(event.token_ids) > 1 for event in messages)
    assert [index for event in messages for index in event.indices] == list(range(16))
