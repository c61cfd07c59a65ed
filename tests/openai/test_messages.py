"""Anthropic's messages, in the shapes that its clients expect."""

import asyncio
import json
from typing import Any

import pytest

from cluster.gateway.keys import Grant
from core.errors import ErrorInfo
from core.goodput import Outcome
from core.request import Request, unpack_tokens
from tests.gateway.keyed import Keys
from tests.openai.asking import expected
from tests.openai.serving import Place, Setting, serve
from tests.openai.test_chat import TWO_ROLES

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TOOL = {"name": "weather", "description": "now", "input_schema": {"type": "object"}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def user(text: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": text}]


async def ask(place: Place, path: str = MESSAGES, **fields: object) -> Any:
    body = {"model": "tiny", "messages": user("the fox")} | ({"max_tokens": 5} if path == MESSAGES else {}) | fields
    return await place.client.post(path, json=body, headers={"anthropic-version": "2023-06-01"})


def events_of(text: str) -> list[tuple[str, Any]]:
    """Kind and data of every event."""
    blocks = text.removesuffix("\n\n").split("\n\n")
    lines = [block.split("\n") for block in blocks if not block.startswith(":")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in lines]


def test_an_answer_is_one_message_with_its_usage() -> None:
    async def scenario(place: Place) -> None:
        told = (await ask(place)).json()
        assert told.pop("penstock")["timing"]["num_attempts"] == 1
        assert told.pop("id").startswith("msg_")
        assert told == {
            "type": "message",
            "role": "assistant",
            "model": "tiny",
            "content": [{"type": "text", "text": expected(place, "the fox", 5)}],
            "stop_reason": "max_tokens",
            "stop_sequence": None,
            "usage": {
                "input_tokens": len(place.tokenizer.encode("the fox")) - 2,
                "cache_read_input_tokens": 2,
                "cache_creation_input_tokens": 0,
                "output_tokens": 5,
            },
        }

    serve(scenario)


def test_a_stream_opens_fills_and_closes_its_blocks() -> None:
    async def scenario(place: Place) -> None:
        answer = await ask(place, stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer.text)
        assert all(kind == data["type"] for kind, data in events)
        kinds = [kind for kind, _ in events]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[2:-3] == ["content_block_delta"] * len(kinds[2:-3])
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        said = [data["delta"]["text"] for kind, data in events if kind == "content_block_delta"]
        assert "".join(said) == expected(place, "the fox", 5)
        start, end = events[0][1]["message"], events[-2][1]
        assert start["content"] == []
        assert start["usage"]["input_tokens"] == len(place.tokenizer.encode("the fox"))
        assert end["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
        assert end["usage"]["output_tokens"] == 5

    serve(scenario)


def test_system_turns_and_blocks_become_messages_of_the_template() -> None:
    async def scenario(place: Place) -> None:
        turns = [
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
        ]
        prompt = "<system>s<user>a<assistant>b<user>c\nd<go>"
        await ask(place, messages=turns, system=[{"type": "text", "text": "s"}], thinking={"type": "disabled"})
        (arrived,) = place.cluster.arrived
        assert unpack_tokens(arrived.token_ids) == tuple(place.tokenizer.encode_bare(prompt))
        counted = await ask(place, COUNT, messages=turns, system="s")
        assert counted.json() == {"input_tokens": len(place.tokenizer.encode_bare(prompt))}

    serve(scenario, Setting(template=TWO_ROLES))


def test_calls_of_tools_are_blocks_and_their_results_go_back() -> None:
    async def scenario(place: Place) -> None:
        length = len(place.tokenizer.encode(CALL))
        whole = (await ask(place, messages=user(CALL), tools=[TOOL], max_tokens=length)).json()
        (block,) = whole["content"]
        assert (block["type"], block["name"], block["input"]) == ("tool_use", "weather", {"city": "Rome"})
        events = events_of((await ask(place, messages=user(CALL), tools=[TOOL], max_tokens=length, stream=True)).text)
        begun = next(data for kind, data in events if kind == "content_block_start")
        assert (begun["content_block"]["name"], begun["content_block"]["input"]) == ("weather", {})
        parts = [data["delta"]["partial_json"] for kind, data in events if kind == "content_block_delta"]
        assert json.loads("".join(parts)) == {"city": "Rome"}
        turns = [
            *user("so?"),
            {"role": "assistant", "content": [{"type": "text", "text": "I look"}, block]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": block["id"], "content": "rain"}],
            },
        ]
        await ask(place, messages=turns, tools=[TOOL], max_tokens=4)
        assert unpack_tokens(place.cluster.arrived[-1].token_ids) == tuple(place.tokenizer.encode_bare("rain"))

    serve(scenario)


def test_a_forced_tool_asks_for_its_schema() -> None:
    async def scenario(place: Place) -> None:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        tool = TOOL | {"input_schema": schema}
        await ask(place, tools=[tool], tool_choice={"type": "tool", "name": "weather"}, max_tokens=1)
        await ask(place, tools=[tool], tool_choice={"type": "any"}, max_tokens=1)
        await ask(place, tools=[tool], tool_choice={"type": "none"}, max_tokens=1)
        forced, either, free = (request.sampling.format for request in place.cluster.arrived)
        assert forced is not None and json.loads(forced.text) == schema
        assert either is not None and json.loads(either.text)["type"] == "array"
        assert free is None

    serve(scenario)


def test_a_stop_sequence_is_named() -> None:
    async def scenario(place: Place) -> None:
        told = (await ask(place, stop_sequences=["fox"], max_tokens=40)).json()
        assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", "fox")
        assert "fox" not in told["content"][0]["text"]

    serve(scenario)


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x.test/y"}}
BAD: dict[str, tuple[dict[str, object], str, str]] = {
    "no messages": ({"messages": []}, "empty_prompt", "messages"),
    "no list": ({"messages": "x"}, "invalid_type", "messages"),
    "no role": ({"messages": [{"content": "x"}]}, "empty_prompt", "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "empty_prompt", "messages[0].content"),
    "a system turn": ({"messages": [{"role": "system", "content": "x"}]}, "invalid_type", "messages[0].role"),
    "an image": (
        {"messages": [{"role": "user", "content": [IMAGE]}]},
        "unsupported_content",
        "messages[0].content[0].type",
    ),
    "an empty list": ({"messages": [{"role": "user", "content": []}]}, "empty_prompt", "messages[0].content"),
    "a block without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "invalid_type",
        "messages[0].content[0].text",
    ),
    "an answer begun": (
        {"messages": [*user("x"), {"role": "assistant", "content": "y"}]},
        "unsupported_parameter",
        "messages",
    ),
    "a field of a turn": (
        {"messages": [{"role": "user", "content": "x", "a": 1}]},
        "unknown_parameter",
        "messages[0].a",
    ),
    "an unknown field": ({"foo": 1}, "unknown_parameter", "foo"),
    "thinking": ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "unsupported_parameter", "thinking"),
    "a nameless choice": ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "invalid_request", "tool_choice.name"),
    "a server's tool": ({"tools": [{"type": "web_search_1", "name": "w"}]}, "invalid_type", "tools[0].type"),
    "too long": ({"max_tokens": 9999}, "context_length_exceeded", "max_tokens"),
    "five stops": ({"stop_sequences": list("abcde")}, "invalid_stop", "stop_sequences"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_named_in_that_interfaces_shape(name: str) -> None:
    fields, code, param = BAD[name]

    async def scenario(place: Place) -> None:
        answer = await ask(place, **fields)
        told = answer.json()
        assert (answer.status_code, told["type"]) == (400, "error")
        assert (told["error"]["type"], told["error"]["code"]) == ("invalid_request_error", code)
        assert told["error"]["param"] == param
        assert place.cluster.arrived == []

    serve(scenario)


def test_a_missing_length_and_an_unknown_model_are_told() -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.post(MESSAGES, json={"messages": user("x")})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
        answer = await ask(place, model="gpt-9")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
        answer = await ask(place, COUNT, model="gpt-9")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")

    serve(scenario)


@pytest.mark.parametrize(("after", "is_streamed"), [(0, False), (0, True), (2, True)])
def test_a_loss_is_a_status_before_the_first_token_and_an_error_event_after_it(after: int, is_streamed: bool) -> None:
    async def scenario(place: Place) -> None:
        async def fail(request: Request) -> None:
            place.cluster.emit(request, 0, after)
            await asyncio.sleep(0.05)  # what was emitted goes out first
            await place.cluster.failing(Outcome.FAILED, ErrorInfo("overloaded", "too much", 1.5))(request)

        place.cluster.answer = fail
        answer = await ask(place, stream=is_streamed)
        if after:
            kind, told = events_of(answer.text)[-1]
            assert (answer.status_code, kind) == (200, "error")
        else:
            told = answer.json()
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert told["type"] == "error"
        assert told["error"]["type"] == "overloaded_error"

    serve(scenario)


def test_a_key_may_come_by_the_header_of_anthropics_clients() -> None:
    keys = Keys(Grant("one"))

    async def scenario(place: Place) -> None:
        body = {"max_tokens": 2, "messages": user("fox")}
        key = keys.header("one").removeprefix("Bearer ")
        statuses = [
            (await place.client.post(MESSAGES, json=body, headers=headers)).status_code
            for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}, {"x-api-key": "psk-x"}, {})
        ]
        assert statuses == [200, 200, 401, 401]
        refused = await place.client.post(MESSAGES, json=body)
        assert refused.json()["error"]["type"] == "authentication_error"

    serve(scenario, Setting(access=keys.settings))
