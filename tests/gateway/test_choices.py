"""Several answers to one prompt: one call outside, one request for each choice inside."""

import asyncio

import grpc
import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import CallFailed
from cluster.gateway.limits import Limits
from core.errors import ErrorInfo
from core.events import RequestEnded, Tick
from core.goodput import Outcome
from core.kv import tail_key
from core.request import Request
from tests.gateway.calls import TEXT, answer, ask, choices_of
from tests.gateway.fake_cluster import TIMING, Place, serve, until


async def read(place: Place, request: pb.GenerateRequest, into: list[pb.GenerateResponse]) -> None:
    async for response in place.client.generate(request):
        into.append(response)


def test_every_choice_is_a_request_of_its_own_and_the_call_ends_after_the_last() -> None:
    async def scenario(place: Place) -> None:
        responses = await answer(place, ask(n=3, seed=5, prompt_logprobs=1))
        choices, prompt = choices_of(responses, 3), place.tokenizer.encode(TEXT)
        for number, choice in enumerate(choices):
            assert choice.token_ids == [prompt[(place + number) % len(prompt)] for place in range(40)]
            assert choice.text == place.tokenizer.decode(choice.token_ids)
            assert choice.finish_reason == "length"
        requests = place.cluster.arrived
        assert [request.sampling.choice for request in requests] == [0, 1, 2]
        assert [request.sampling.prompt_logprobs for request in requests] == [1, None, None]
        assert {request.sampling.seed for request in requests} == {5}
        assert len({request.id for request in requests}) == 3
        assert {response.request_id for response in responses} == {requests[0].id}
        assert place.cluster.told_ends == dict.fromkeys((request.id for request in requests), Outcome.FINISHED)

    serve(scenario)


def test_usage_counts_the_prompt_once_and_all_answers_and_timing_is_the_slowest() -> None:
    async def scenario(place: Place) -> None:
        async def in_turn(request: Request) -> None:
            if request.sampling.choice == 2:
                for number in (1, 0, 2):
                    await asyncio.sleep(0.01)
                    place.cluster.emit(place.cluster.arrived[number], 0, 40)

        place.cluster.answer = in_turn
        responses = await answer(place, ask(n=3))
        choices_of(responses, 3)
        last = responses[-1]
        assert last.choice == 2
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(place.tokenizer.encode(TEXT)), 120)
        assert last.usage.cached_tokens == TIMING.num_cached_tokens
        slowest = max(place.gateway.ledgers, key=lambda ledger: ledger.wall_s)
        assert slowest.id == place.cluster.arrived[2].id
        assert last.timing.wall_s == slowest.wall_s

    serve(scenario)


def test_choices_end_each_in_its_own_way() -> None:
    async def scenario(place: Place) -> None:
        prompt = place.tokenizer.encode(TEXT)
        text = place.tokenizer.decode(prompt[1:])
        first, second = choices_of(await answer(place, ask(max_tokens=len(prompt) - 1, n=2, stop=[text[-3:]])), 2)
        assert (first.finish_reason, first.text) == ("length", place.tokenizer.decode(prompt[:-1]))
        assert (second.finish_reason, second.stop_reason, second.text) == ("stop", text[-3:], text[:-3])

    serve(scenario)


def test_the_error_of_one_choice_ends_the_call_and_cancels_the_others() -> None:
    async def scenario(place: Place) -> None:
        async def fail(request: Request) -> None:
            place.cluster.emit(request, 0, 2 + request.sampling.choice)
            if request.sampling.choice == 2:
                await asyncio.sleep(0.01)
                error = ErrorInfo("worker_lost", "gone", 2.0)
                place.cluster.give(RequestEnded(place.cluster.arrived[1].id, Outcome.FAILED, error))

        place.cluster.answer = fail
        responses: list[pb.GenerateResponse] = []
        with pytest.raises(CallFailed, match="gone") as failed:
            await read(place, ask(n=3), responses)
        assert (failed.value.status, failed.value.code) == (grpc.StatusCode.ABORTED, "worker_lost")
        assert failed.value.retry_after_s == 2.0
        assert sum(len(response.token_ids) for response in responses) == 2 + 3 + 4
        assert not any(response.finish_reason for response in responses)
        first, _, third = (request.id for request in place.cluster.arrived)
        assert place.cluster.told_ends == {first: Outcome.CANCELLED, third: Outcome.CANCELLED}
        assert sorted((ledger.outcome.value, ledger.code) for ledger in place.gateway.ledgers) == [
            ("cancelled", "worker_lost"),
            ("cancelled", "worker_lost"),
            ("failed", "worker_lost"),
        ]

    serve(scenario)


def test_a_refused_choice_refuses_the_call_and_says_that_no_token_was_told() -> None:
    async def scenario(place: Place) -> None:
        async def refuse(request: Request) -> None:
            if request.sampling.choice == 1:
                place.cluster.give(RequestEnded(request.id, Outcome.FAILED, ErrorInfo("worker_lost", "no node")))

        place.cluster.answer = refuse
        with pytest.raises(CallFailed) as failed:
            await answer(place, ask(n=2))
        assert failed.value.status is grpc.StatusCode.UNAVAILABLE

    serve(scenario)


def test_a_choice_that_finished_before_another_fails_is_told_in_full() -> None:
    async def scenario(place: Place) -> None:
        async def mixed(request: Request) -> None:
            if request.sampling.choice == 0:
                place.cluster.emit(request, 0, 40)
            else:
                place.cluster.give(RequestEnded(request.id, Outcome.FAILED, ErrorInfo("step_failed", "nan")))

        place.cluster.answer = mixed
        responses: list[pb.GenerateResponse] = []
        with pytest.raises(CallFailed) as failed:
            await read(place, ask(n=2), responses)
        assert failed.value.code == "step_failed"
        assert [(response.choice, response.finish_reason) for response in responses] == [(0, "length")]
        assert not responses[0].HasField("usage")

    serve(scenario)


def test_a_client_that_leaves_cancels_every_choice() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.echo_short_of(400)
        call = place.client.generate(ask(max_tokens=400, n=4))
        await anext(call)
        await call.aclose()
        await until(lambda: len(place.cluster.told_ends) == 4)
        assert set(place.cluster.told_ends.values()) == {Outcome.CANCELLED}
        assert {ledger.code for ledger in place.gateway.ledgers} == {"client_closed"}

    serve(scenario)


def test_the_calls_deadline_expires_every_choice() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        with pytest.raises(CallFailed):
            await anext(place.client.generate(ask(n=3), timeout_s=0.3))
        await until(lambda: len(place.cluster.told_ends) == 3)
        assert set(place.cluster.told_ends.values()) == {Outcome.EXPIRED}

    serve(scenario)


def test_choices_that_expire_in_the_gateway_expire_together() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        task = asyncio.create_task(answer(place, ask(n=3)))
        await until(lambda: len(place.cluster.arrived) == 3)
        place.gateway.handle(Tick(), asyncio.get_running_loop().time() + 1000)
        with pytest.raises(CallFailed, match="are over"):
            await task
        assert [ledger.outcome for ledger in place.gateway.ledgers] == [Outcome.EXPIRED] * 3

    serve(scenario)


def test_limits_count_choices() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        task = asyncio.create_task(answer(place, ask(n=3, max_tokens=2)))
        await until(lambda: len(place.cluster.arrived) == 3)
        with pytest.raises(CallFailed, match="3 of this gateway's 4 streams are in use, 2 more are needed") as failed:
            await answer(place, ask(n=2))
        assert failed.value.code == "overloaded"
        assert len(place.cluster.arrived) == 3
        for request in place.cluster.arrived:
            place.cluster.emit(request, 0, 2)
        choices_of(await task, 3)

    serve(scenario, Limits(max_streams=4))


def test_what_all_choices_leave_unread_counts_together() -> None:
    async def scenario(place: Place) -> None:
        async def flood(request: Request) -> None:
            if request.sampling.choice == 3:
                for arrived in place.cluster.arrived:
                    place.cluster.emit(arrived, 0, 50)

        place.cluster.answer = flood
        with pytest.raises(CallFailed) as failed:
            await answer(place, ask(max_tokens=100, n=4))
        assert (failed.value.status, failed.value.code) == (grpc.StatusCode.CANCELLED, "slow_reader")
        assert {ledger.code for ledger in place.gateway.ledgers} == {"slow_reader"}
        assert len(place.cluster.told_ends) == 4

    serve(scenario, Limits(max_pending_bytes=1500))


def test_a_lost_node_is_not_seen_in_any_choice() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.losing(after=7)
        prompt = place.tokenizer.encode(TEXT)
        for number, choice in enumerate(choices_of(await answer(place, ask(n=2)), 2)):
            assert choice.token_ids == [prompt[(place + number) % len(prompt)] for place in range(40)]

    serve(scenario)


def test_prompts_are_named_whole_so_that_choices_can_share_their_last_block() -> None:
    async def scenario(place: Place) -> None:
        await answer(place, ask(n=2))
        first, second = place.cluster.arrived
        assert first.prompt == second.prompt
        assert first.prompt.tail_key == tail_key(first.token_ids, 16)

    serve(scenario)
