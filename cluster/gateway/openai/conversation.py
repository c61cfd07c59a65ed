"""A client's messages, checked, in the shape that chat templates are written for."""

import json
from collections.abc import Callable

from cluster.gateway.chat_template import Conversation, JsonObject
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.tools import FunctionSpec

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Templates know no `developer`: it is what `system` was called before."""

TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
COPIED = frozenset({"name", "tool_call_id", "reasoning_content", "reasoning"})
ECHOED = frozenset({"refusal", "annotations", "audio", "function_call", "id", "status", "type"})
"""What clients send back of an earlier answer of ours, and no template reads."""

Message = dict[str, object]


def conversation(messages: object, functions: tuple[FunctionSpec, ...] = ()) -> Conversation:
    """Messages and tools for the model's template. Raises FieldError."""
    if not isinstance(messages, list):
        raise FieldError("messages", "must be a list", "invalid_type")
    if not messages:
        raise FieldError("messages", "must not be empty", "empty_prompt")
    read = tuple(_message(each, f"messages[{index}]") for index, each in enumerate(messages))
    return Conversation(read, tuple(tool_object(it) for it in functions))


def tool_object(function: FunctionSpec) -> JsonObject:
    """A tool as templates expect it."""
    return {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}


def _message(message: object, path: str) -> Message:
    if not isinstance(message, dict):
        raise FieldError(path, "must be an object", "invalid_type")
    if message.get("role") is None:
        raise FieldError(f"{path}.role", "is missing", "empty_prompt")
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise FieldError(f"{path}.role", f"must be one of {', '.join(ROLES)}, is {echoed(str(role))}", "invalid_type")
    read: Message = {"role": ROLES[role]}
    for name, value in message.items():
        if value is None or name in ("role", "content", *ECHOED):
            continue
        read[name] = _field(name, value, path)
    content = message.get("content")
    if content is None and "tool_calls" not in read:
        raise FieldError(f"{path}.content", "is missing", "empty_prompt")
    read["content"] = "" if content is None else text_of(content, f"{path}.content")
    return read


def _field(name: str, value: object, path: str) -> object:
    if name == "tool_calls":
        return _tool_calls(value, f"{path}.tool_calls")
    if name not in COPIED:
        raise FieldError(f"{path}.{name[:64]}", "is not a field of a message", "unknown_parameter")
    return _expect(value, str, f"{path}.{name}")


def text_of(content: object, path: str) -> str:
    """A text, or the texts of a list of parts. Raises FieldError for images and sound."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise FieldError(path, "must be text or a list of parts", "invalid_type")
    return "\n".join(_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part(part: object, path: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise FieldError(path, "must be an object", "invalid_type")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise FieldError(f"{path}.type", f"only text is taken, not {echoed(str(kind))}", "unsupported_content")
    return str(_expect(part.get("text"), str, f"{path}.text"))


def _tool_calls(calls: object, path: str) -> list[Message]:
    if not isinstance(calls, list):
        raise FieldError(path, "must be a list", "invalid_type")
    return [_tool_call(call, f"{path}[{index}]") for index, call in enumerate(calls)]


def _tool_call(call: object, path: str) -> Message:
    """Templates write the arguments out as JSON, so they are given as an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise FieldError(path, "must be {id, type, function: {name, arguments}}", "invalid_type")
    name = _expect(function.get("name"), str, f"{path}.function.name")
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"{path}.function.arguments")
    return {"id": call.get("id"), "type": "function", "function": {"name": name, "arguments": arguments}}


def _parsed(arguments: str, path: str) -> object:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise FieldError(path, "is not JSON", "invalid_type") from error


def _expect(value: object, kind: Callable[[], object], path: str) -> object:
    if type(value) is not kind:
        raise FieldError(path, "must be text", "invalid_type")
    return value
