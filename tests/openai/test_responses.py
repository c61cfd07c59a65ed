"""POST /v1/responses: a whole response, its events, and what needs a memory refused by name."""

import asyncio
import json

import openai
import pytest

from core.errors import ErrorInfo
from core.events import FinishReason, TokensEmitted
from core.goodput import Outcome
from core.ids import attempt_id
from core.request import Request, unpack_tokens
from tests.gateway.fake_cluster import TIMING
from tests.openai.asking import RESPONSES, ask, client_of, expected
from tests.openai.serving import Place, Setting, serve
from tests.openai.test_chat import TWO_ROLES
from tests.openai.test_tool_calls import ARGUMENTS, CALL

TOOLS = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]


def test_the_official_client_gets_a_response_with_usage() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            done = await client.responses.create(
                model="tiny", input="one fox", max_output_tokens=9, metadata={"a": "b"}
            )
        assert done.output_text == expected(place, "one fox", 9)
        assert (done.status, done.metadata) == ("incomplete", {"a": "b"})
        assert done.incomplete_details is not None and done.incomplete_details.reason == "max_output_tokens"
        assert done.usage is not None and (done.usage.output_tokens, done.usage.input_tokens) == (9, 4)
        assert done.previous_response_id is None

    serve(scenario)


def test_instructions_and_items_become_messages_of_the_template() -> None:
    async def scenario(place: Place) -> None:
        items = [
            {"role": "user", "content": "so?"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me see"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        ]
        answer = await ask(place, RESPONSES, input=items, instructions="be brief", max_output_tokens=1)
        assert answer.status_code == 200
        sent = place.tokenizer.decode(list(unpack_tokens(place.cluster.arrived[0].token_ids)))
        assert sent == "<system>be brief<user>so?<assistant>let me see<assistant><tool>rain<go>"

    serve(scenario, Setting(template=TWO_ROLES))


def test_a_stream_numbers_its_events_and_ends_with_the_whole_response() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            stream = await client.responses.create(model="tiny", input="one fox", max_output_tokens=9, stream=True)
            events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type.removeprefix("response.") for event in events]
        assert kinds == [
            *("created", "in_progress", "output_item.added", "content_part.added"),
            *["output_text.delta"] * 9,
            *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
        ]
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        last = events[-1]
        assert last.type == "response.incomplete"
        assert text == last.response.output_text == expected(place, "one fox", 9)

    serve(scenario)


def test_an_answer_that_ends_by_itself_completes_the_response() -> None:
    async def scenario(place: Place) -> None:
        async def stop(request: Request) -> None:
            attempt, finish = attempt_id(request.id, 1), (None, FinishReason.STOP)
            place.cluster.give(TokensEmitted((attempt, attempt), (0, 1), (5, 6), finish, (None, TIMING), (), ()))

        place.cluster.answer = stop
        async with client_of(place) as client, client.responses.stream(model="tiny", input="one fox") as stream:
            kinds = [event.type async for event in stream]
            done = await stream.get_final_response()
        assert kinds[-1] == "response.completed"
        assert done.output_text == place.tokenizer.decode([5, 6])

    serve(scenario)


def test_function_calls_are_items_of_their_own() -> None:
    async def scenario(place: Place) -> None:
        text = f"Wait. {CALL}"
        fields = {"input": text, "tools": TOOLS, "max_output_tokens": len(place.tokenizer.encode(text))}
        async with client_of(place) as client:
            done = await client.responses.create(model="tiny", **fields)  # type: ignore[call-overload]
            stream = await client.responses.create(model="tiny", **fields, stream=True)  # type: ignore[call-overload]
            events = [event async for event in stream]
        for response in (done, events[-1].response):
            said, call = response.output
            assert said.content[0].text == "Wait. "
            assert (call.type, call.name, call.arguments) == ("function_call", "weather", ARGUMENTS)
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == ARGUMENTS

    serve(scenario)


def test_a_loss_in_mid_stream_is_a_failed_response() -> None:
    async def scenario(place: Place) -> None:
        async def fail(request: object) -> None:
            place.cluster.emit(place.cluster.arrived[0], 0, 2)
            await asyncio.sleep(0.05)
            await place.cluster.failing(Outcome.FAILED, ErrorInfo("worker_lost", "gone"))(place.cluster.arrived[0])

        place.cluster.answer = fail
        text = (await ask(place, RESPONSES, input="one fox", stream=True)).text
        kind, data = text.removesuffix("\n\n").split("\n\n")[-1].split("\n")
        assert kind == "event: response.failed"
        response = json.loads(data.removeprefix("data: "))["response"]
        assert (response["status"], response["error"]["code"]) == ("failed", "worker_lost")

    serve(scenario)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("store", True),
        ("reasoning", {"effort": "low"}),
        ("include", ["message.output_text.logprobs"]),
    ],
)
def test_what_needs_a_memory_is_refused_by_name(name: str, value: object) -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(model="tiny", input="x", extra_body={name: value})
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", name)

    serve(scenario)


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        ([], "empty_prompt", "input"),
        ("", "empty_prompt", "input"),
        ([{"type": "item_reference", "id": "x"}], "unsupported_content", "input[0].type"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "unsupported_content", "input[0].content[0].type"),
        ([{"role": "user"}], "empty_prompt", "input[0].content"),
        (7, "invalid_type", "input"),
    ],
)
def test_a_bad_input_is_named(item: object, code: str, param: str) -> None:
    async def scenario(place: Place) -> None:
        error = (await ask(place, RESPONSES, input=item)).json()["error"]
        assert (error["code"], error["param"]) == (code, param)

    serve(scenario)
