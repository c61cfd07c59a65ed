"""What an answer must be, at the door: read, compiled once, or refused by field and place before any harm is done."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.formats import MAX_FORMAT_BYTES, Formats
from core.errors import Unavailable
from core.request import AnswerFormat, FormatKind
from tests.gateway.fake_cluster import VOCABULARY, Place, serve


def run(scenario: Callable[[Formats], Awaitable[None]]) -> None:
    async def walk() -> None:
        formats = Formats(VOCABULARY)
        try:
            await scenario(formats)
        finally:
            formats.close()

    asyncio.run(walk())


async def problem(formats: Formats, **wanted: object) -> tuple[str, str, str]:
    """Field, code and message of a refusal."""
    with pytest.raises(FieldError) as refused:
        await formats.read(pb.SamplingParams(**wanted))  # type: ignore[arg-type]
    return refused.value.field, refused.value.code, refused.value.message


SCHEMA = {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"enum": [1, "x"]}}}
TAKEN = {
    "nothing": ({}, None),
    "a schema": ({"json_schema": json.dumps(SCHEMA)}, AnswerFormat(FormatKind.JSON_SCHEMA, json.dumps(SCHEMA))),
    "any JSON": ({"json_schema": "{}"}, AnswerFormat(FormatKind.JSON_SCHEMA, "{}")),
    "a regex": ({"regex": "(a|é)+"}, AnswerFormat(FormatKind.REGEX, "(a|é)+")),
    "Lark": ({"grammar": 'start: "a" b?\nb: /[0-9]/'}, AnswerFormat(FormatKind.LARK, 'start: "a" b?\nb: /[0-9]/')),
    "GBNF": ({"grammar": 'root ::= "a"'}, AnswerFormat(FormatKind.LARK, '%llguidance {}\n\nstart: "a"\n')),
    "choices": (
        {"choice": ["yes", "no", "yes", 'a "b"\n', "漢"]},
        AnswerFormat(FormatKind.LARK, 'start: "yes" | "no" | "a \\"b\\"\\n" | "漢"'),
    ),
}


def test_formats_are_read_as_every_node_will_read_them() -> None:
    async def scenario(formats: Formats) -> None:
        for name, (wanted, expected) in TAKEN.items():
            for _ in range(2):
                assert await formats.read(pb.SamplingParams(**wanted)) == expected, name  # type: ignore[arg-type]

    run(scenario)


REFUSED: dict[str, tuple[dict[str, object], str, str]] = {
    "not JSON": ({"json_schema": '{"a":'}, "json_schema", "line 1 column 6"),
    "no object": ({"json_schema": "[]"}, "json_schema", "must be a JSON object"),
    "a deep schema": ({"json_schema": '{"items":' * 5000 + "{}" + "}" * 5000}, "json_schema", "nested too deeply"),
    "a keyword inside": (
        {"json_schema": '{"properties": {"a/b": {"items": {"uniqueItems": true}}}}'},
        "json_schema",
        "uniqueItems (at /properties/a~1b/items): not supported",
    ),
    "a name like a keyword": (
        {"json_schema": '{"properties": {"not": {"type": "strng"}}, "default": {"type": "strng"}}'},
        "json_schema",
        "Invalid type: strng (at /properties/not)",
    ),
    "an unknown format": ({"json_schema": '{"format": "banana"}'}, "json_schema", "banana (at /)"),
    "options": ({"json_schema": '{"x-guidance": {"lenient": true}, "not": {}}'}, "json_schema", "x-guidance"),
    "options in a grammar": ({"grammar": 'start: %json {"x-guidance": {}}'}, "grammar", "x-guidance"),
    "a reference elsewhere": ({"json_schema": '{"$ref": "http://x.test/y"}'}, "json_schema", "x.test"),
    "unsatisfiable": (
        {"json_schema": '{"minLength": 5, "maxLength": 2, "type": "string"}'},
        "json_schema",
        "minLength",
    ),
    "look-ahead": ({"regex": "(?=a)b"}, "regex", "look-around"),
    "a reference back": ({"regex": r"(a)\1"}, "regex", "backreferences"),
    "an empty regex": ({"regex": ""}, "regex", "must not be empty"),
    "a grammar's own temperature": ({"grammar": "start: a\na[temperature=0.5]: /x+/"}, "grammar", "temperature"),
    "a deep grammar": ({"grammar": "root ::= " + "(" * 3000}, "grammar", "nested too deeply"),
    "a deep expression": ({"grammar": "start: " + "(" * 3000 + '"a"' + ")" * 3000}, "grammar", "too deeply nested"),
    "bytes": ({"grammar": "x" * (MAX_FORMAT_BYTES + 1)}, "grammar", f"at most {MAX_FORMAT_BYTES} bytes"),
}


@pytest.fixture(scope="module")
def refusals() -> dict[str, tuple[str, str, str]]:
    found: dict[str, tuple[str, str, str]] = {}

    async def scenario(formats: Formats) -> None:
        for name, (wanted, _, _) in REFUSED.items():
            found[name] = await problem(formats, **wanted)

    run(scenario)
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_its_field_and_says_where(
    name: str, refusals: dict[str, tuple[str, str, str]]
) -> None:
    _, field, says = REFUSED[name]
    found = refusals[name]
    assert found[:2] == (f"sampling.{field}", "invalid_grammar")
    assert says in found[2]
    assert len(found[2]) < 250 and "\n" not in found[2]


def test_a_format_that_takes_too_much_ends_its_process_and_no_other_request() -> None:
    slow = json.dumps({"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 8009)]})

    async def scenario(formats: Formats) -> None:
        hostile = asyncio.create_task(problem(formats, json_schema=slow))
        others = [asyncio.create_task(formats.read(pb.SamplingParams(regex=f"a{{{n}}}"))) for n in range(1, 9)]
        assert (await hostile)[2].startswith("sampling.json_schema: takes more than 0.25 s of processor time")
        assert [found.text for found in await asyncio.gather(*others) if found] == [f"a{{{n}}}" for n in range(1, 9)]

    run(scenario)


def test_a_process_that_has_died_is_replaced() -> None:
    async def scenario(formats: Formats) -> None:
        assert await formats.read(pb.SamplingParams(regex="a"))
        assert formats._process is not None
        process = formats._process._confined._process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert await formats.read(pb.SamplingParams(regex="b"))

    run(scenario)


def test_a_caller_that_gives_up_while_its_format_is_compiled_leaves_the_others_their_answers() -> None:
    async def scenario(formats: Formats) -> None:
        await formats.read(pb.SamplingParams(regex="a"))
        asked = [asyncio.create_task(formats.read(pb.SamplingParams(regex=f"[ab]{{{n}}}"))) for n in range(1, 20)]
        await asyncio.sleep(0)
        for task in asked[::3]:
            task.cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        kept = [answer for place, answer in enumerate(found) if place % 3]
        assert kept == [AnswerFormat(FormatKind.REGEX, f"[ab]{{{n}}}") for n in range(1, 20) if (n - 1) % 3]

    run(scenario)


def test_after_the_end_and_without_a_vocabulary_formats_are_refused() -> None:
    async def scenario(formats: Formats) -> None:
        formats.close()
        with pytest.raises(Unavailable):
            await formats.read(pb.SamplingParams(regex="a"))
        assert (await problem(Formats(), regex="a"))[1] == "unsupported_parameter"

    run(scenario)


def test_every_choice_of_a_call_has_the_format_and_the_scheduler_gets_it_with_the_request() -> None:
    async def scenario(place: Place) -> None:
        sampling = pb.SamplingParams(max_tokens=3, n=2, regex="a+")
        async for _ in place.client.generate(pb.GenerateRequest(text="fox", sampling=sampling)):
            pass
        assert [request.sampling.choice for request in place.cluster.arrived] == [0, 1]
        assert {request.sampling.format for request in place.cluster.arrived} == {AnswerFormat(FormatKind.REGEX, "a+")}

    serve(scenario)
