"""The kinds of fields that HTTP requests have, and pydantic's findings in our words."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.config import JsonDict
from pydantic_core import ErrorDetails, PydanticCustomError

from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.json_body import Fields

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


class Closed(BaseModel):
    """A JSON object with known fields of exact types, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def ranged(text: str, least: float, most: float | None = None) -> Any:
    """An optional number whose range the description tells, and the gateway checks, as it does for gRPC."""
    limits: dict[str, float] = {"minimum": least} if most is None else {"minimum": least, "maximum": most}
    return Field(None, description=text, json_schema_extra=cast(JsonDict, limits))


def _as_whole(value: object) -> object:
    """JSON has one kind of number: 8.0 is as whole as 8."""
    return int(value) if isinstance(value, float) and value.is_integer() and str(value) != "-0.0" else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_is(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "must be a number")
    return value


Whole = Annotated[int, BeforeValidator(_as_whole)]
Number = Annotated[float, BeforeValidator(_as_is)]
Texts = Annotated[
    list[str],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
AnyJson = Annotated[object, WithJsonSchema({})]
JsonObject = Annotated[dict[str, object], WithJsonSchema({"type": "object", "additionalProperties": True})]

Model = TypeVar("Model", bound=BaseModel)

IGNORED = frozenset({"user", "store", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""OpenAI's fields that mean nothing here: clients send them unasked, so they are taken and not looked at."""

RESERVED = frozenset(
    {
        "kv_transfer_params",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "disagg_prefill_dp_rank",
        "data_parallel_rank",
        "routed_dp_rank",
        "remote_host",
        "remote_port",
        "remote_engine_id",
        "remote_block_ids",
        "prefill_addr",
        "decode_addr",
        "peer",
        "rank",
    }
)
"""Names by which other runtimes let clients choose nodes and peers; here no client does."""

UNSERVED: Mapping[str, str] = {
    "best_of": "invalid_n",
    "audio": "unsupported_content",
    "prompt_embeds": "unsupported_content",
    "modalities": "unsupported_content",
    **dict.fromkeys(
        (
            "chat_template",
            "chat_template_kwargs",
            "documents",
            "add_generation_prompt",
            "continue_final_message",
            "add_special_tokens",
            "suffix",
            "functions",
            "function_call",
            "reasoning_effort",
            "verbosity",
            "prediction",
            "web_search_options",
            "use_beam_search",
            "length_penalty",
            "bad_words",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "logits_processors",
            "mm_processor_kwargs",
        ),
        "unsupported_parameter",
    ),
}
"""Fields that others know and nothing serves here, with the code of the refusal."""


def read_model(kind: type[Model], fields: Fields) -> Model:
    """The fields as a model. Raises FieldError for the first that is unknown, not served or of another type."""
    served = {name: value for name, value in fields.items() if name in kind.model_fields or _is_served(name, value)}
    try:
        return kind.model_validate(served)
    except ValidationError as error:
        raise _found(error.errors(include_url=False, include_input=False)[0]) from error


def _is_served(name: str, value: object) -> bool:
    """Whether the model shall see it; what is ignored or absent by null is not."""
    if name in RESERVED:
        raise FieldError(name, "is the cluster's own to decide", "reserved_parameter")
    if name in UNSERVED:
        if value is None:
            return False
        raise FieldError(name, "is not served here; leave it out", UNSERVED[name])
    return name not in IGNORED


def _found(detail: ErrorDetails) -> FieldError:
    path = path_of(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return FieldError(path[:64], "is not a field of this request", "unknown_parameter")
    if detail["type"] == "missing":
        code = "empty_prompt" if path in ("messages", "prompt", "input") else "invalid_request"
        return FieldError(path, "is missing", code)
    return FieldError(path, detail["msg"][:1].lower() + detail["msg"][1:], "invalid_type")


def path_of(loc: tuple[int | str, ...]) -> str:
    """`("tools", 0, "type")` as `tools[0].type`."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def fit(value: int, most: int, field: str, code: str) -> int:
    """A whole number that a message can carry; its own limits are checked behind."""
    if not -most - 1 <= value <= most:
        raise FieldError(field, f"must be at most {most}, is {echoed(str(value))}", code)
    return value
