"""What an answer must be: every way to ask for it becomes the one schema or grammar that the gateway is told."""

import json

import pytest

from cluster.api.v1.inference_pb2 import GenerateRequest
from core.errors import Overloaded
from tests.openai.asking import CHAT, COMPLETIONS, RESPONSES, ask, says
from tests.openai.serving import Place, serve

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANY_OBJECT = {"type": "object"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "weather"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
BAD = {"type": "strng"}
BAD_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD}}
BAD_TOOL = {"type": "function", "function": {"name": "weather", "parameters": BAD}}
CALLS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"name": {"const": "weather"}, "parameters": SCHEMA},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        ]
    },
}
CHATS = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
    ({"response_format": FORMAT}, SCHEMA),
    ({"structured_outputs": {"json": SCHEMA}}, SCHEMA),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, SCHEMA),
    ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
    ({"tools": [TOOL], "tool_choice": NAMED}, SCHEMA),
    ({"tools": [TOOL], "tool_choice": "required"}, CALLS),
    ({"tools": [TOOL], "tool_choice": "auto"}, None),
    ({"tools": [TOOL]}, None),
    ({"tools": [TOOL], "tool_choice": "none", "response_format": FORMAT}, SCHEMA),
    ({"tools": [], "tool_choice": "auto"}, None),
]
CASES = [(CHAT, {"messages": says("fox")} | fields, schema) for fields, schema in CHATS] + [
    (COMPLETIONS, {"prompt": "fox", "response_format": FORMAT}, SCHEMA),
    (RESPONSES, {"input": "fox", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}, SCHEMA),
    (RESPONSES, {"input": "fox", "text": {"format": {"type": "json_object"}}}, ANY_OBJECT),
    (RESPONSES, {"input": "fox", "text": {"verbosity": "medium"}}, None),
]


async def told(place: Place, path: str, fields: dict[str, object]) -> GenerateRequest:
    """What the gateway is told of a request; nothing comes of it."""
    messages: list[GenerateRequest] = []

    async def submit(message: GenerateRequest, *_: object) -> None:
        messages.append(message)
        raise Overloaded("enough seen")

    place.gateway.submit = submit  # type: ignore[assignment, method-assign]
    answer = await ask(place, path, **fields)
    assert (answer.status_code, len(messages)) == (503, 1), answer.text
    return messages[0]


@pytest.mark.parametrize(("path", "fields", "schema"), CASES)
def test_a_format_becomes_a_schema(path: str, fields: dict[str, object], schema: object) -> None:
    async def scenario(place: Place) -> None:
        sampling = (await told(place, path, fields)).sampling
        assert sampling.HasField("json_schema") == (schema is not None)
        assert schema is None or json.loads(sampling.json_schema) == schema
        assert not sampling.HasField("grammar")

    serve(scenario)


def test_a_grammar_is_handed_on_as_it_is() -> None:
    async def scenario(place: Place) -> None:
        fields = {"prompt": "fox", "structured_outputs": {"grammar": 'start: "a"'}}
        assert (await told(place, COMPLETIONS, fields)).sampling.grammar == 'start: "a"'

    serve(scenario)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": BAD_FORMAT}, "response_format"),
        ({"structured_outputs": {"json": BAD}}, "structured_outputs.json"),
        ({"structured_outputs": {"grammar": "("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice[0]"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"tools": [BAD_TOOL], "tool_choice": "required"}, "tools"),
        ({"tools": [BAD_TOOL], "tool_choice": NAMED}, "tools"),
    ],
)
def test_a_format_that_cannot_be_kept_is_refused_by_the_name_that_asked_for_it(
    fields: dict[str, object], param: str
) -> None:
    async def scenario(place: Place) -> None:
        answer = await ask(place, CHAT, messages=says("fox"), **fields)
        assert answer.status_code == 400, answer.text
        assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("invalid_grammar", param)
        assert place.cluster.arrived == []

    serve(scenario)


def test_two_formats_at_once_are_refused() -> None:
    async def scenario(place: Place) -> None:
        for fields in (
            {"response_format": FORMAT, "tools": [TOOL], "tool_choice": "required"},
            {"response_format": FORMAT, "structured_outputs": {"json": SCHEMA}},
            {"structured_outputs": {}},
        ):
            answer = await ask(place, CHAT, messages=says("fox"), **fields)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")

    serve(scenario)
