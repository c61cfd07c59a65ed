"""Tools that a client offers, and the one that it may force, as a JSON schema of the answer."""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

from pydantic import WithJsonSchema

from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.fields import AnyJson, Closed, JsonObject

MAX_TOOLS = 128
MAX_NAME_CHARS = 64


class FunctionSpec(Closed):
    """A function as the model is told of it."""

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Closed):
    """One tool; only functions are served."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Closed):
    """The name of a function."""

    name: str


class NamedTool(Closed):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    AnyJson,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": ["none", "auto", "required"]},
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": "function"},
                        "function": {"type": "object", "properties": {"name": {"type": "string"}}},
                    },
                },
            ],
            "description": "none, auto, required, or the one function to call.",
        }
    ),
]


class CallForm(Enum):
    """How the answer's text is to be read."""

    TEXT = "text"
    AUTO = "auto"
    NAMED = "named"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What tools mean for one request. `name`: what a named choice forces; `schema`: of a forced answer."""

    form: CallForm = CallForm.TEXT
    functions: tuple[FunctionSpec, ...] = ()
    name: str = ""
    schema: str | None = None


def tool_use(functions: tuple[FunctionSpec, ...], choice: object) -> ToolUse:
    """What `tools` and `tool_choice` ask for together. Raises FieldError."""
    _check_functions(functions)
    if choice == "none" or (not functions and choice in (None, "auto")):
        return ToolUse()
    if not functions:
        raise FieldError("tool_choice", "needs tools", "invalid_request")
    if choice in (None, "auto"):
        return ToolUse(CallForm.AUTO, functions)
    if choice == "required":
        return ToolUse(CallForm.REQUIRED, functions, schema=_any_of(functions))
    name = _named(choice)
    chosen = next((it for it in functions if it.name == name), None)
    if chosen is None:
        raise FieldError("tool_choice.function.name", f"{echoed(name)} is none of the tools", "invalid_request")
    return ToolUse(CallForm.NAMED, functions, name, json.dumps(chosen.parameters or {"type": "object"}))


def _check_functions(functions: tuple[FunctionSpec, ...]) -> None:
    if len(functions) > MAX_TOOLS:
        raise FieldError("tools", f"at most {MAX_TOOLS}, are {len(functions)}", "invalid_request")
    for index, function in enumerate(functions):
        if not 1 <= len(function.name) <= MAX_NAME_CHARS:
            problem = f"must have 1 to {MAX_NAME_CHARS} characters, has {len(function.name)}"
            raise FieldError(f"tools[{index}].function.name", problem, "invalid_request")


def _named(choice: object) -> str:
    """Chat completions nest the name in `function`, Responses do not."""
    if isinstance(choice, dict) and choice.get("type") == "function":
        inner = choice.get("function", choice)
        if isinstance(inner, dict) and isinstance(name := inner.get("name"), str):
            return name
    problem = "must be none, auto, required, or {type: function, function: {name}}"
    raise FieldError("tool_choice", problem, "invalid_type")


def _any_of(functions: tuple[FunctionSpec, ...]) -> str:
    """A list of at least one call, each of a known function with its own arguments."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": it.name}, "parameters": it.parameters or {"type": "object"}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for it in functions
    ]
    return json.dumps({"type": "array", "minItems": 1, "items": {"anyOf": calls}})
