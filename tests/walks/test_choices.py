"""Walk: several answers to one prompt.

1. Each choice is a request of its own, with its own attempt.
2. The scheduler sends them after each other to the node that computes the prompt.
3. The first one computes it; the others wait, then share its full blocks and copy the last one.
4. Each of them costs one step of one token before its first token.
5. At the decode node one of them fetches; those that come meanwhile wait for it, then share its full blocks.
6. Each answer is the one that its choice would have got alone.
"""

import pytest

from cluster.simulated.host import Dice, Host
from cluster.simulated.scenario import NodePlan
from core.commands import FetchKV
from core.events import AttemptEnd, AttemptFinished, ClaimAnswered, KVArrived, KVFailed
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


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks each fetch was asked for, in order."""
    asked: list[int] = []
    begin = Host._begin_fetch

    def note(host: Host, command: FetchKV) -> None:
        asked.append(len(command.into.block_ids))
        begin(host, command)

    monkeypatch.setattr(Host, "_begin_fetch", note)
    return asked


@pytest.mark.parametrize(("num_prompt_tokens", "asked"), [(3, [1, 1, 1, 1]), (12, [3]), (15, [4, 1, 1, 1])])
def test_full_blocks_of_one_prompt_travel_once(num_prompt_tokens: int, asked: list[int], fetched: list[int]) -> None:
    stage = Stage(prefill_node("a", 32, 16), decode_node(num_blocks=32))
    ask_all(stage, num_prompt_tokens)
    stage.end()
    assert fetched == asked


def test_when_the_one_that_fetches_is_dropped_another_fetches_for_all(fetched: list[int]) -> None:
    stage = Stage(prefill_node("a", 32, 16), decode_node(num_blocks=32))
    choices = ask_all(stage, 12)
    stage.once(ClaimAnswered, lambda _: stage.world.cancel(choices[0]))
    stage.end()
    ends = [stage.answer(choice).ended for choice in choices]
    assert [end.outcome for end in ends if end] == [Outcome.CANCELLED, *[Outcome.FINISHED] * 3]
    assert fetched == [3, 3]
    assert stage.num_seen(KVArrived) == 2


def test_when_its_bytes_are_damaged_another_fetches_for_all(fetched: list[int]) -> None:
    stage = Stage(prefill_node("a", 32, 16), decode_node(num_blocks=32))
    choices = ask_all(stage, 12)
    stage.once(ClaimAnswered, lambda _: setattr(stage.world.place, "dice", Dice(byte_flips=1.0)))
    stage.once(KVFailed, lambda _: setattr(stage.world.place, "dice", Dice()))
    stage.end()
    ends = [stage.answer(choice).ended for choice in choices]
    assert [end.outcome for end in ends if end] == [Outcome.FINISHED] * NUM_CHOICES
    reported = [event.end for _, event in stage.record if isinstance(event, AttemptFinished)]
    assert reported.count(AttemptEnd.KV_CORRUPT) == 1
    assert fetched == [3, 3, 1], "the damaged one comes back with the token that it had"
