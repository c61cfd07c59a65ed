"""Logprobs on their way to the client: aligned with their tokens, each exactly once, whatever happens on the way."""

import grpc
import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.codec import decode, encode
from cluster.gateway.client import CallFailed
from cluster.gateway.client_stream import Chunk
from cluster.gateway.limits import Limits
from cluster.gateway.messages import response_message
from cluster.gateway.sampling_checks import MAX_LOGPROBS, MAX_PROMPT_SCORES, MAX_SCORED_PROMPT_TOKENS
from core.events import TokensEmitted
from core.goodput import Outcome
from core.ids import AttemptId, attempt_id
from core.request import Request
from core.step import TokenLogprobs
from tests.gateway.calls import TEXT, Choice, answer, ask, choices_of
from tests.gateway.fake_cluster import Place, score, serve

GRPC_DEFAULT_LIMIT = 4 * 1024 * 1024


def scores(messages: list[pb.TokenLogprobs]) -> list[TokenLogprobs]:
    return [TokenLogprobs(m.logprob, m.rank, tuple(m.top_token_ids), tuple(m.top_logprobs)) for m in messages]


def check(choice: Choice, number: int, num_top: int) -> None:
    assert scores(choice.logprobs) == [score(number, place, num_top) for place in range(len(choice.token_ids))]


@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_every_token_comes_with_its_own_scores(num_top: int) -> None:
    async def scenario(place: Place) -> None:
        (choice,) = choices_of(await answer(place, ask(logprobs=num_top)))
        assert len(choice.logprobs) == 40
        check(choice, 0, num_top)
        assert choice.prompt_logprobs == []

    serve(scenario)


def test_choices_keep_their_own_scores() -> None:
    async def scenario(place: Place) -> None:
        for number, choice in enumerate(choices_of(await answer(place, ask(logprobs=2, n=3)), 3)):
            check(choice, number, 2)

    serve(scenario)


def test_nothing_is_told_that_was_not_asked_for() -> None:
    async def scenario(place: Place) -> None:
        async def talkative(request: Request) -> None:
            attempt, told = attempt_id(request.id, 0), score(0, 0, 3)
            event = TokensEmitted((attempt,), (0,), (70,), (None,), (None,), (told,), ((told, told),))
            place.cluster.give(event)
            place.cluster.emit(request, 1, 39, number=0)

        place.cluster.answer = talkative
        (choice,) = choices_of(await answer(place, ask()))
        assert (choice.logprobs, choice.prompt_logprobs) == ([], [])

    serve(scenario)


@pytest.mark.parametrize("after", [0, 1, 7])
def test_scores_survive_the_loss_of_a_node_exactly_once(after: int) -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.losing(after)
        (choice,) = choices_of(await answer(place, ask(logprobs=2, prompt_logprobs=1)))
        check(choice, 0, 2)
        num_prompt = len(place.tokenizer.encode(TEXT))
        assert scores(choice.prompt_logprobs) == [score(-1, place, 1) for place in range(1, num_prompt)]

    serve(scenario)


def test_tokens_that_overtake_each_other_keep_their_scores() -> None:
    async def scenario(place: Place) -> None:
        async def backwards(request: Request) -> None:
            for first in reversed(range(0, 40, 5)):
                place.cluster.emit(request, first, 5)

        place.cluster.answer = backwards
        (choice,) = choices_of(await answer(place, ask(logprobs=1)))
        check(choice, 0, 1)

    serve(scenario)


def test_scores_of_the_prompt_stand_in_the_first_response_of_the_first_choice() -> None:
    async def scenario(place: Place) -> None:
        responses = await answer(place, ask(prompt_logprobs=3, n=2))
        first, second = choices_of(responses, 2)
        num_prompt = len(place.tokenizer.encode(TEXT))
        assert scores(first.prompt_logprobs) == [score(-1, place, 3) for place in range(1, num_prompt)]
        assert second.prompt_logprobs == []
        assert [r.choice for r in responses if r.prompt_logprobs] == [0]

    serve(scenario)


def test_a_prompt_of_one_token_has_no_scores() -> None:
    async def scenario(place: Place) -> None:
        params = pb.SamplingParams(max_tokens=2, prompt_logprobs=1)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]), sampling=params)
        (choice,) = choices_of(await answer(place, request))
        assert choice.prompt_logprobs == []

    serve(scenario)


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_a_node_that_keeps_scores_to_itself_fails_the_request(field: str) -> None:
    async def scenario(place: Place) -> None:
        async def silent(request: Request) -> None:
            place.cluster.give(TokensEmitted((attempt_id(request.id, 0),), (0,), (70,), (None,), (None,)))

        place.cluster.answer = silent
        with pytest.raises(CallFailed, match="without the logprobs") as failed:
            await answer(place, ask(**{field: 1}))
        assert failed.value.status is grpc.StatusCode.INTERNAL
        assert list(place.cluster.told_ends.values()) == [Outcome.FAILED]

    serve(scenario)


def test_scores_that_wait_count_against_a_slow_reader() -> None:
    async def scenario(place: Place) -> None:
        async def flood(request: Request) -> None:
            place.cluster.emit(request, 0, 20)

        place.cluster.answer = flood
        choices_of(await answer(place, ask(max_tokens=20, prompt_logprobs=20)))
        choices_of(await answer(place, ask(max_tokens=20, logprobs=1)))
        with pytest.raises(CallFailed) as failed:
            await answer(place, ask(max_tokens=30, logprobs=20))
        assert failed.value.code == "slow_reader"

    serve(scenario, Limits(max_pending_bytes=2000))


@pytest.mark.parametrize("num_top", [0, 7, MAX_LOGPROBS])
def test_the_most_scores_of_a_prompt_fit_into_one_message_and_into_a_clients_usual_limit(num_top: int) -> None:
    """The values that take most room; the bytes grow with the number of scores, so a sixteenth of them shows it."""
    share = 16
    num_prompt = min(MAX_SCORED_PROMPT_TOKENS, MAX_PROMPT_SCORES // (num_top + 1))
    worst = TokenLogprobs(-1e-300, 2**31 - 1, (2**21 - 1,) * num_top, (-1e-300,) * num_top)
    prompt = (worst,) * (num_prompt // share)
    response = response_message("r" * 32, Chunk(0, 0, (1,), "x", (worst,), prompt))
    assert response.ByteSize() * share < GRPC_DEFAULT_LIMIT
    event = TokensEmitted((AttemptId("r#0"),), (0,), (1,), (None,), (None,), (worst,), (prompt,))
    assert len(encode(event)) * share < 8 * 1024 * 1024
    assert decode(encode(event)) == event


def test_many_scores_of_a_prompt_arrive() -> None:
    async def scenario(place: Place) -> None:
        (choice,) = choices_of(await answer(place, ask("fox " * 1200, 3, prompt_logprobs=2)))
        num_prompt = len(place.tokenizer.encode("fox " * 1200))
        assert num_prompt > 1001
        assert scores(choice.prompt_logprobs) == [score(-1, place, 2) for place in range(1, num_prompt)]

    serve(scenario, max_model_len=10_000)
