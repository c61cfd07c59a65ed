"""Conversations on their way through a template: what it takes too much of is its own process's, and nobody else's."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

import grpc
import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.chat_prompts import ChatPrompts
from cluster.gateway.chat_template import ChatTemplate, Conversation, user_says
from cluster.gateway.client import CallFailed
from cluster.gateway.keys import Grant, Quota
from cluster.gateway.template_process import MAX_PROMPT_BYTES
from core.errors import InvalidRequest, Unavailable
from tests.gateway.calls import answer
from tests.gateway.fake_cluster import Place, serve
from tests.gateway.keyed import Keys, Stub, channel_to

FOR_EVER = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if messages[0].content == 'loop' %}"
    "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
    "{% endif %}"
    "{% if messages[0].content == 'memory' %}{{ 'x' * 10 ** 11 }}{% endif %}"
    "{% if messages[0].content == 'long' %}{{ 'x' * (17 * 2 ** 20) }}{% endif %}"
    "{% if messages[0].content == 'no' %}{{ raise_exception('not so') }}{% endif %}"
)


def run(scenario: Callable[[ChatPrompts], Awaitable[None]], source: str = FOR_EVER) -> None:
    async def walk() -> None:
        chats = ChatPrompts(ChatTemplate(source, {"eos_token": "</s>"}))
        try:
            await scenario(chats)
        finally:
            chats.close()

    asyncio.run(walk())


def nested(depth: int) -> object:
    deep: object = 1
    for _ in range(depth):
        deep = [deep]
    return deep


async def problem(chats: ChatPrompts, text: str) -> str:
    with pytest.raises(InvalidRequest) as refused:
        await chats.render(user_says(text))
    return refused.value.message


def test_a_conversation_is_rendered_as_in_this_process() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}|{{ (m.tool_calls or []) | tojson }}{% endfor %}"
        "{{ tools | tojson }}{{ add_generation_prompt }}{{ eos_token }}"
    )
    call = {"id": None, "type": "function", "function": {"name": "f", "arguments": {"ä": [1.5, None, True]}}}
    talks = (
        Conversation(({"role": "user", "content": 'für 漢字 😀 "\\'},)),
        Conversation(({"role": "assistant", "content": "", "tool_calls": [call]},), ({"type": "function"},), False),
    )

    async def scenario(chats: ChatPrompts) -> None:
        here = ChatTemplate(source, {"eos_token": "</s>"})
        for talk in talks:
            assert await chats.render(talk) == here.render(talk)

    run(scenario, source)


def test_a_template_that_runs_for_ever_or_takes_the_memory_is_ended_and_no_other_request() -> None:
    async def scenario(chats: ChatPrompts) -> None:
        hostile = {name: asyncio.create_task(problem(chats, name)) for name in ("loop", "memory", "long", "no")}
        others = [asyncio.create_task(chats.render(user_says(f"hello {n}"))) for n in range(8)]
        assert await asyncio.gather(*others) == [f"hello {n}" for n in range(8)]
        told = {name: await each for name, each in hostile.items()}
        assert told["loop"] == "messages: the model's chat template takes more than 0.25 s of processor time for them"
        assert told["memory"] == "messages: the model's chat template takes too much memory for them"
        assert told["long"].endswith(f"more than {MAX_PROMPT_BYTES}")
        assert told["no"] == "messages: the model's chat template refuses them: not so"

    run(scenario)


def test_arguments_nested_without_end_are_refused_and_the_next_conversation_is_served() -> None:
    async def scenario(chats: ChatPrompts) -> None:
        call = {"function": {"name": "f", "arguments": nested(400_000)}}
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            await chats.render(Conversation(({"role": "assistant", "content": "", "tool_calls": [call]},)))
        assert await chats.render(user_says("and now")) == "and now"

    run(scenario)


def test_arguments_as_deep_as_the_door_lets_in_are_rendered_or_refused_but_end_nothing() -> None:
    async def scenario(chats: ChatPrompts) -> None:
        for depth in (10, 500, 900, 990):
            call = {"function": {"name": "f", "arguments": nested(depth)}}
            talk = Conversation(({"role": "assistant", "content": "a", "tool_calls": [call]},))
            told = await asyncio.gather(chats.render(talk), return_exceptions=True)
            assert told == ["a"] or isinstance(told[0], InvalidRequest), told
        assert await chats.render(user_says("and now")) == "and now"

    run(scenario)


def test_a_process_that_has_died_is_replaced_by_the_next_conversation() -> None:
    async def scenario(chats: ChatPrompts) -> None:
        await chats.start()
        assert chats._process is not None
        process = chats._process._confined._process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert await chats.render(user_says("b")) == "b"

    run(scenario)


def test_a_stopped_server_renders_nothing() -> None:
    async def scenario(chats: ChatPrompts) -> None:
        chats.close()
        with pytest.raises(Unavailable) as refused:
            await chats.render(user_says("a"))
        assert refused.value.code == "draining"

    run(scenario)


def test_the_loop_goes_on_while_a_template_does() -> None:
    """A gateway whose loop stood still for a hostile conversation would let all its streams wait."""

    async def scenario(chats: ChatPrompts) -> None:
        hostile = asyncio.create_task(problem(chats, "loop"))
        turns = 0
        while not hostile.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 100

    run(scenario)


def test_over_grpc_a_template_without_end_is_the_requests_error_and_others_are_answered() -> None:
    async def scenario(place: Place) -> None:
        place.gateway.chats.close()
        place.gateway.chats = ChatPrompts(ChatTemplate(FOR_EVER, {}))
        params = pb.SamplingParams(max_tokens=2)
        with pytest.raises(CallFailed) as refused:
            await answer(place, pb.GenerateRequest(text="loop", chat=True, sampling=params))
        assert (refused.value.status, refused.value.code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
        assert "processor time" in str(refused.value)
        told = await answer(place, pb.GenerateRequest(text="fox", chat=True, sampling=params))
        assert told[-1].finish_reason == "length"

    serve(scenario)


def test_making_tokens_of_texts_and_back_is_counted_as_a_request_of_the_keys_minute() -> None:
    keys = Keys(Grant("few", quota=Quota(requests_per_minute=2)))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            stub, metadata = Stub(channel), keys.metadata("few")
            await stub.ask("Tokenize", pb.TokenizeRequest(text="fox"), pb.TokenizeResponse, metadata)
            await stub.ask("Detokenize", pb.DetokenizeRequest(token_ids=[1]), pb.DetokenizeResponse, metadata)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ask("Tokenize", pb.TokenizeRequest(text="fox"), pb.TokenizeResponse, metadata)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await stub.ask("ListModels", pb.ListModelsRequest(), pb.ListModelsResponse, metadata)
        assert place.gateway.access.caller(keys.header("few"), 0.0).num_open == 0

    serve(scenario, access=keys.settings)
