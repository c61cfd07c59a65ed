"""Tool calls out of a model's text: the same however it is cut, and as the official client takes them."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.gateway.chat_template import ChatTemplate
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.chat_answer import message_of
from cluster.gateway.openai.config import CallFormat
from cluster.gateway.openai.tool_calls import AnswerReader, Part, Said, format_of, reader_of
from cluster.gateway.openai.tools import CallForm, FunctionSpec, ToolUse, tool_use
from tests.openai.asking import CHAT, ask, client_of, says
from tests.openai.serving import Place, Setting, serve

AUTO = ToolUse(CallForm.AUTO)
WEATHER = FunctionSpec(name="weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
ARGUMENTS = r'{"city": "K\u00f6\"ln {", "days": [1, {"a": null}], "x": -1.5e3}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
LATE_NAME = '<tool_call>{"arguments": {"a": 1}, "id": 7, "name": "late"}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]

HERMES = {
    "prose": ("no call at all <b>", [], "no call at all <b>"),
    "one": (CALL, [("weather", ARGUMENTS)], None),
    "prose before": (f"Let me look. {CALL}", [("weather", ARGUMENTS)], "Let me look. "),
    "two": (f"{CALL}\n{LATE_NAME}\n", [("weather", ARGUMENTS), ("late", '{"a": 1}')], None),
    "a tag that is none": ("a <tool_cal> b", [], "a <tool_cal> b"),
    "nonsense inside": ("<tool_call>what?</tool_call>", [], "<tool_call>what?</tool_call>"),
    "no name": ('<tool_call>{"a": 1}</tool_call>', [], '<tool_call>{"a": 1}</tool_call>'),
    "broken off": ('<tool_call>{"name": "f", "arguments": {"a"', [("f", '{"a"')], None),
    "broken off before its name": ('<tool_call>{"na', [], '<tool_call>{"na'),
    "without arguments": ('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")], None),
}
LLAMA = {
    "prose": ("It rains.", [], "It rains."),
    "one": (f'{{"name": "weather", "parameters": {ARGUMENTS}}}', [("weather", ARGUMENTS)], None),
    "two": (
        '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"a": [";"]}}',
        [("f", "{}"), ("g", '{"a": [";"]}')],
        None,
    ),
    "other JSON": ('{"answer": {"name": 1}} is JSON', [], '{"answer": {"name": 1}} is JSON'),
    "a list": ("[1, 2]", [], "[1, 2]"),
    "broken off": ('{"na', [], '{"na'),
}


def told(reader: AnswerReader, pieces: list[str]) -> tuple[list[tuple[str, str]], str | None]:
    """The calls and the prose of a text that came in these pieces."""
    parts: list[Part] = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    message = message_of(parts)
    calls = message.get("tool_calls", [])
    assert isinstance(calls, list)
    assert len({call["id"] for call in calls}) == len(calls) == reader.num_calls
    content = message["content"]
    assert content is None or isinstance(content, str)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls], content


CASES = [(CallFormat.HERMES, *case) for case in HERMES.values()] + [
    (CallFormat.LLAMA3_JSON, *case) for case in LLAMA.values()
]
IDS = [f"hermes {name}" for name in HERMES] + [f"llama {name}" for name in LLAMA]


@pytest.mark.parametrize(("written", "text", "calls", "prose"), CASES, ids=IDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_calls_are_found_however_the_text_is_cut(
    written: CallFormat, text: str, calls: list[tuple[str, str]], prose: str | None, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=30)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert told(reader_of(AUTO, written, is_single=False), pieces) == (calls, prose)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='<tool_call>{"name":x,}/ \\[];1', max_size=60), st.sampled_from(list(CallFormat)))
def test_no_text_breaks_a_reader_and_no_cut_changes_what_it_says(text: str, written: CallFormat) -> None:
    by_char = told(reader_of(AUTO, written, is_single=False), list(text))
    assert told(reader_of(AUTO, written, is_single=False), [text]) == by_char


def test_calls_after_the_first_are_dropped_where_one_is_allowed() -> None:
    text, calls, _ = HERMES["two"]
    assert told(reader_of(AUTO, CallFormat.HERMES, is_single=True), list(text))[0] == calls[:1]


def test_forced_calls_are_read_from_the_json_that_the_schema_made() -> None:
    named = reader_of(ToolUse(CallForm.NAMED, (WEATHER,), "weather"), CallFormat.NONE, is_single=False)
    assert told(named, list('{"city": "Ulm"}')) == ([("weather", '{"city": "Ulm"}')], None)
    required = reader_of(ToolUse(CallForm.REQUIRED, (WEATHER,)), CallFormat.NONE, is_single=False)
    text = '[{"name": "f", "parameters": {"a": 1}}, {"name": "g", "parameters": {}}]'
    assert told(required, list(text)) == ([("f", '{"a": 1}'), ("g", "{}")], None)


def test_a_forced_tool_asks_for_its_schema() -> None:
    named = tool_use((WEATHER,), {"type": "function", "function": {"name": "weather"}})
    assert (named.form, named.name) == (CallForm.NAMED, "weather")
    assert json.loads(named.schema or "") == WEATHER.parameters
    schema = json.loads(tool_use((WEATHER,), "required").schema or "")
    assert schema["items"]["anyOf"][0]["properties"]["name"] == {"const": "weather"}
    assert tool_use((WEATHER,), "none") == ToolUse()
    assert tool_use((WEATHER,), None).form is CallForm.AUTO


@pytest.mark.parametrize(
    ("functions", "choice", "field"),
    [
        ((), "required", "tool_choice"),
        ((WEATHER,), "maybe", "tool_choice"),
        ((WEATHER,), {"type": "function", "function": {"name": "x"}}, "tool_choice.function.name"),
        ((WEATHER,) * 129, "auto", "tools"),
        ((FunctionSpec(name=""),), "auto", "tools[0].function.name"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_by_name(
    functions: tuple[FunctionSpec, ...], choice: object, field: str
) -> None:
    with pytest.raises(FieldError) as refused:
        tool_use(functions, choice)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ tools }} <tool_call>", CallFormat.HERMES),
        ('{{ tools }} {"name": x, "parameters": y}', CallFormat.LLAMA3_JSON),
        ("{{ tools }}", CallFormat.NONE),
        ("<tool_call>", CallFormat.NONE),
    ],
)
def test_the_format_is_the_one_that_the_template_teaches(source: str, written: CallFormat) -> None:
    assert format_of(CallFormat.AUTO, ChatTemplate(source, {})) is written
    assert format_of(CallFormat.LLAMA3_JSON, ChatTemplate(source, {})) is CallFormat.LLAMA3_JSON


def test_plain_text_is_told_token_by_token_even_where_it_is_empty() -> None:
    reader = reader_of(ToolUse(), CallFormat.HERMES, is_single=False)
    assert [*reader.push("<tool_call>"), *reader.push("")] == [Said("<tool_call>"), Said("")]


@pytest.mark.parametrize("num_extra", [0, 1])
def test_the_official_client_gets_calls_whole_and_streamed(num_extra: int) -> None:
    async def scenario(place: Place) -> None:
        text = f"Wait. {CALL}"
        fields = {"model": "tiny", "messages": says(text), "tools": TOOLS, "temperature": 0}
        length = len(place.tokenizer.encode(text)) - num_extra
        async with client_of(place) as client:
            done = await client.chat.completions.create(**fields, max_tokens=length)  # type: ignore[call-overload]
            async with client.chat.completions.stream(**fields, max_tokens=length) as stream:  # type: ignore[arg-type]
                chunks = [event.chunk async for event in stream if event.type == "chunk"]
        (call,) = done.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", ARGUMENTS)
        assert done.choices[0].message.content == "Wait. "
        deltas = [chunk.choices[0].delta for chunk in chunks]
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        assert "".join(delta.content or "" for delta in deltas) == "Wait. "
        assert [call.function.name for call in calls if call.function and call.function.name] == ["weather"]
        assert "".join(call.function.arguments or "" for call in calls if call.function) == ARGUMENTS
        assert len(calls) > 20, "the arguments come in pieces"
        assert {call.index for call in calls} == {0}

    serve(scenario)


def test_an_answer_that_ends_by_itself_after_calls_has_the_reason_tool_calls() -> None:
    async def scenario(place: Place) -> None:
        fields = {"messages": says(f"{CALL}END"), "tools": TOOLS, "stop": "END", "max_tokens": 300}
        body = (await ask(place, CHAT, **fields)).json()
        assert body["choices"][0]["finish_reason"] == "tool_calls"
        plain = (await ask(place, CHAT, **fields, tool_choice="none")).json()["choices"][0]
        assert (plain["finish_reason"], plain["message"]["content"]) == ("stop", CALL)

    serve(scenario)


def test_tools_are_refused_where_the_template_takes_none() -> None:
    async def scenario(place: Place) -> None:
        error = (await ask(place, CHAT, messages=says("fox"), tools=TOOLS)).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "tools")

    serve(scenario, Setting(template="{{ messages[0].content }}"))


def test_calls_and_their_results_go_back_into_the_template() -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "[{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}{% endfor %}{{ tools | length }}"
    )

    async def scenario(place: Place) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
        messages = [
            {"role": "user", "content": "so?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
        text = (await ask(place, CHAT, messages=messages, tools=TOOLS, max_tokens=60)).json()
        assert text["choices"][0]["message"]["content"].startswith("so?[weather Ulm]rain1")

    serve(scenario, Setting(template=template))
