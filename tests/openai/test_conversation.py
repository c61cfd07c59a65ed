"""Whatever JSON stands for messages, it is a conversation or a refusal by name: nothing of it is our mistake."""

import json
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.gateway.chat_template import Conversation
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.conversation import conversation
from cluster.gateway.openai.messages_request import chat_of
from cluster.gateway.openai.responses_request import ResponsesRequest, messages_of

NAMES = st.sampled_from(
    [
        *("role", "content", "type", "text", "name", "tool_calls", "tool_call_id", "function", "arguments", "id"),
        *("tool_use_id", "input", "output", "call_id", "cache_control", "reasoning", "refusal"),
    ]
)
WORDS = st.sampled_from(
    [
        *("user", "assistant", "system", "tool", "developer", "text", "input_text", "image_url", "function", "message"),
        *("tool_use", "tool_result", "function_call", "function_call_output", "", "{}", "[1", '{"a": 1}', "é\udc80"),
    ]
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), WORDS)
ANY = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=24
)
TURN = st.dictionaries(NAMES, ANY, max_size=5) | st.fixed_dictionaries({"role": WORDS, "content": ANY})
TURNS = st.lists(TURN, max_size=4) | ANY


def refused_field(read: Callable[[], object]) -> str:
    """The field that is refused; empty where all is read, whose contents are texts then."""
    try:
        told = read()
    except FieldError as error:
        return error.field
    assert isinstance(told, Conversation)
    assert all(isinstance(each["content"], str) for each in told.messages)
    json.dumps(told.messages)
    return ""


@settings(max_examples=400, deadline=None)
@given(messages=TURNS)
def test_a_chats_messages(messages: object) -> None:
    field = refused_field(lambda: conversation(messages))
    assert not field or field.startswith("messages")


@settings(max_examples=400, deadline=None)
@given(messages=TURNS, system=ANY)
def test_anthropics_turns(messages: object, system: object) -> None:
    field = refused_field(lambda: conversation(chat_of(messages, system)))
    assert not field or field.startswith(("messages", "system"))


@settings(max_examples=400, deadline=None)
@given(items=TURNS)
def test_items_of_a_response(items: object) -> None:
    asked = ResponsesRequest.model_construct(input=items, instructions=None)
    field = refused_field(lambda: conversation(messages_of(asked)))
    assert not field or field.startswith(("input", "messages"))
