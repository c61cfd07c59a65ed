"""The body of POST /v1/responses: a subset that keeps nothing between calls."""

import json
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.conversation import text_of
from cluster.gateway.openai.fields import MAX_INT32, AnyJson, Closed, JsonObject, Whole, ranged
from cluster.gateway.openai.sampling import JSON_OBJECT, Asked, StreamOptions
from cluster.gateway.openai.tools import FunctionSpec, ToolChoice

_ITEM = {"type": "object", "description": "A message, a function_call, or a function_call_output."}
Input = Annotated[
    AnyJson, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _ITEM, "minItems": 1}]})
]


class FunctionTool(Closed):
    """A function; Responses write it without the nesting of chat completions."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class TextFormat(Closed):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class TextSettings(Closed):
    """The form of the answer's text."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(Asked):
    """POST /v1/responses"""

    input: Input
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: Whole | None = ranged("Length of the answer.", 1, MAX_INT32)
    text: TextSettings | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = Field(None, description="Nothing is stored; true is refused.")
    truncation: Literal["disabled"] | None = None
    stream_options: StreamOptions | None = None
    metadata: JsonObject | None = Field(None, description="Said back.")


NOT_KEPT = ("previous_response_id", "conversation", "background", "prompt", "reasoning", "include", "max_tool_calls")
"""What needs a server that keeps answers, or a kind of model that is not served."""


def refuse_kept(fields: dict[str, object]) -> dict[str, object]:
    """The fields without those that are absent by null. Raises FieldError for one that asks for more than an answer."""
    for name in NOT_KEPT:
        if fields.get(name) not in (None, False, [], {}):
            raise FieldError(name, "is not served: answers are not kept; send the whole input", "unsupported_parameter")
    if fields.get("store") is True:
        raise FieldError("store", "nothing is stored: leave it out, or false", "unsupported_parameter")
    return {name: value for name, value in fields.items() if name not in NOT_KEPT}


def functions_of(asked: ResponsesRequest) -> tuple[FunctionSpec, ...]:
    """The tools as chat completions have them."""
    return tuple(
        FunctionSpec(name=it.name, description=it.description, parameters=it.parameters, strict=it.strict)
        for it in asked.tools or ()
    )


def schema_of(asked: ResponsesRequest) -> str | None:
    """The JSON schema of the answer; None where it is free text."""
    wanted = asked.text.format if asked.text is not None else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JSON_OBJECT
    if wanted.schema_ is None:
        raise FieldError("text.format.schema", "is missing", "invalid_request")
    return json.dumps(wanted.schema_)


def messages_of(asked: ResponsesRequest) -> list[object]:
    """Instructions and input as messages of a chat. Raises FieldError."""
    messages: list[object] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        if not asked.input:
            raise FieldError("input", "must not be empty", "empty_prompt")
        return [*messages, {"role": "user", "content": asked.input}]
    if not isinstance(asked.input, list):
        raise FieldError("input", "must be a text or a list of items", "invalid_type")
    if not asked.input:
        raise FieldError("input", "must not be empty", "empty_prompt")
    return messages + [_message(item, f"input[{index}]") for index, item in enumerate(asked.input)]


def _message(item: object, path: str) -> dict[str, object]:
    if not isinstance(item, dict):
        raise FieldError(path, "must be an object", "invalid_type")
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": item.get("role"), "content": item.get("content")}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}
    if kind == "function_call_output":
        output = text_of(item.get("output"), f"{path}.output")
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    problem = f"must be message, function_call or function_call_output, is {echoed(str(kind))}"
    raise FieldError(f"{path}.type", problem, "unsupported_content")
