"""The body of POST /v1/messages, Anthropic's interface: what of it needs no memory and no other kind of model."""

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.fields import MAX_INT32, AnyJson, Closed, JsonObject, Whole
from cluster.gateway.openai.sampling import Asked
from cluster.gateway.openai.tools import FunctionSpec

_TURN = {
    "type": "object",
    "properties": {
        "role": {"enum": ["user", "assistant"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}
Turns = Annotated[AnyJson, WithJsonSchema({"type": "array", "items": _TURN, "minItems": 1})]
System = Annotated[
    AnyJson, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]})
]
Json = dict[str, object]


class CustomTool(Closed):
    """A function that the client runs."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: JsonObject
    cache_control: JsonObject | None = Field(None, description="Taken and not looked at: prefixes are always cached.")


class Choice(Closed):
    """Which tool is to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Turned(Closed):
    """What counting and answering share."""

    model: str | None = None
    messages: Turns
    system: System | None = None
    tools: list[CustomTool] | None = None
    tool_choice: Choice | None = None


class CountRequest(Turned):
    """POST /v1/messages/count_tokens"""


class MessagesRequest(Asked):
    """POST /v1/messages"""

    messages: Turns
    max_tokens: Whole = Field(
        description="Length of the answer.", json_schema_extra={"minimum": 1, "maximum": MAX_INT32}
    )
    system: System | None = None
    tools: list[CustomTool] | None = None
    tool_choice: Choice | None = None
    stop_sequences: list[str] | None = Field(None, description="At most 4 texts of 1 to 256 bytes.")
    thinking: JsonObject | None = Field(None, description="Only {type: disabled}.")


def functions_of(tools: list[CustomTool] | None) -> tuple[FunctionSpec, ...]:
    """The tools as chat completions have them."""
    return tuple(
        FunctionSpec(name=it.name, description=it.description, parameters=it.input_schema) for it in tools or ()
    )


def choice_of(choice: Choice | None) -> object:
    """`tool_choice` as chat completions have it. Raises FieldError."""
    if choice is None or choice.type != "tool":
        return None if choice is None else {"any": "required"}.get(choice.type, choice.type)
    if choice.name is None:
        raise FieldError("tool_choice.name", "is missing", "invalid_request")
    return {"type": "function", "function": {"name": choice.name}}


def check_thinking(thinking: Json | None) -> None:
    """Raises FieldError for a kind of model that is not served."""
    if thinking is not None and thinking.get("type") != "disabled":
        raise FieldError("thinking", "is not served: leave it out, or {type: disabled}", "unsupported_parameter")


def chat_of(messages: object, system: object) -> list[object]:
    """System and turns as messages of a chat. Raises FieldError by the name that Anthropic's interface has for it."""
    chat: list[object] = [] if system is None else [{"role": "system", "content": _text(system, "system")}]
    if not isinstance(messages, list):
        raise FieldError("messages", "must be a list", "invalid_type")
    if not messages:
        raise FieldError("messages", "must not be empty", "empty_prompt")
    for index, turn in enumerate(messages):
        chat += _turn(turn, f"messages[{index}]")
    if isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        problem = "the last one must be the user's: an answer's beginning is not taken"
        raise FieldError("messages", problem, "unsupported_parameter")
    return chat


def _turn(turn: object, path: str) -> list[Json]:
    if not isinstance(turn, dict):
        raise FieldError(path, "must be an object", "invalid_type")
    for name in turn:
        if name not in ("role", "content"):
            raise FieldError(f"{path}.{name[:64]}", "is not a field of a message", "unknown_parameter")
    role, content = turn.get("role"), turn.get("content")
    if role is None or content is None:
        missing = "role" if role is None else "content"
        raise FieldError(f"{path}.{missing}", "is missing", "empty_prompt")
    if role not in ("user", "assistant"):
        raise FieldError(f"{path}.role", f"must be user or assistant, is {echoed(str(role))}", "invalid_type")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = _blocks(content, f"{path}.content")
    return _answered(blocks, f"{path}.content") if role == "user" else [_called(blocks, f"{path}.content")]


def _answered(blocks: list[Json], path: str) -> list[Json]:
    """Results of tools are messages of their own, before or behind the user's text as they stand."""
    turns: list[Json] = []
    for index, block in enumerate(blocks):
        at = f"{path}[{index}]"
        if block.get("type") == "tool_result":
            content = block.get("content")
            text = "" if content is None else _text(content, f"{at}.content")
            turns.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", at), "content": text})
            continue
        text = _block_text(block, at)
        if turns and turns[-1]["role"] == "user":
            turns[-1]["content"] = f"{turns[-1]['content']}\n{text}"
        else:
            turns.append({"role": "user", "content": text})
    return turns


def _called(blocks: list[Json], path: str) -> Json:
    """An earlier answer: its texts, and the calls that it made."""
    texts, calls = [], []
    for index, block in enumerate(blocks):
        at = f"{path}[{index}]"
        if block.get("type") == "tool_use":
            if not isinstance(arguments := block.get("input"), dict):
                raise FieldError(f"{at}.input", "must be an object", "invalid_type")
            function = {"name": _string(block, "name", at), "arguments": arguments}
            calls.append({"id": _string(block, "id", at), "type": "function", "function": function})
        else:
            texts.append(_block_text(block, at))
    turn: Json = {"role": "assistant", "content": "\n".join(texts)}
    return turn | {"tool_calls": calls} if calls else turn


def _text(content: object, path: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(block, f"{path}[{i}]") for i, block in enumerate(_blocks(content, path)))


def _blocks(content: object, path: str) -> list[Json]:
    if not isinstance(content, list):
        raise FieldError(path, "must be text or a list of blocks", "invalid_type")
    if not content:
        raise FieldError(path, "must not be empty", "empty_prompt")
    for index, block in enumerate(content):
        if not isinstance(block, dict):
            raise FieldError(f"{path}[{index}]", "must be an object", "invalid_type")
    return content


def _block_text(block: Json, path: str) -> str:
    if block.get("type") != "text":
        problem = f"only text, tool_use and tool_result are taken, not {echoed(str(block.get('type')))}"
        raise FieldError(f"{path}.type", problem, "unsupported_content")
    return _string(block, "text", path)


def _string(block: Json, name: str, path: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise FieldError(f"{path}.{name}", "must be text", "invalid_type")
    return value
