"""What every request for text may ask for beside its prompt, and what the gateway is told of it."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.fields import (
    MAX_INT32,
    MAX_INT64,
    AnyJson,
    Closed,
    JsonObject,
    Number,
    Texts,
    Whole,
    fit,
    ranged,
)
from cluster.gateway.validation import MAX_NAME_CHARS

MS_PER_S = 1000.0
JSON_OBJECT = '{"type": "object"}'
MAX_TOKENS_NAMES = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_TOKEN_ID = re.compile(r"-?[0-9]{1,18}")

NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
WHOLES = (
    ("top_k", MAX_INT64, "invalid_sampling"),
    ("seed", MAX_INT64, "invalid_seed"),
    ("n", MAX_INT32, "invalid_n"),
    ("min_tokens", MAX_INT64, "invalid_min_tokens"),
    ("prompt_logprobs", MAX_INT32, "invalid_logprobs"),
)


class StreamOptions(Closed):
    """How a stream tells what it used."""

    include_usage: bool | None = Field(None, description="One more chunk at the end, with the usage and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="The usage so far in every chunk.")
    include_obfuscation: bool | None = Field(None, description="Taken for compatibility; nothing is padded.")


class Targets(Closed):
    """A service level objective: both targets, each in milliseconds or in seconds."""

    ttft_ms: Number | None = ranged("To the first token; above 0, at most 600,000.", 0, 600000)
    tpot_ms: Number | None = ranged("Mean per token after the first; above 0, at most 600,000.", 0, 600000)
    ttft_s: Number | None = ranged("The same in seconds.", 0, 600)
    tpot_s: Number | None = ranged("The same in seconds.", 0, 600)


class JsonSchemaFormat(Closed):
    """The schema of a `response_format`."""

    name: str | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Closed):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Closed):
    """vLLM's field for a guided answer; exactly one of them."""

    json_: AnyJson | None = Field(None, alias="json", description="A JSON schema, as an object or as text.")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Asked(Closed):
    """The fields that chat completions, completions and responses share; names and meanings are OpenAI's and vLLM's."""

    model: str | None = Field(None, description="The served model's name; absent: whichever is served.")
    stream: bool | None = Field(None, description="Server-sent events, one for each token.")
    temperature: Number | None = ranged("0 to 2; 0 is greedy. Default: the model's own, else 1.", 0, 2)
    top_p: Number | None = ranged("Above 0, at most 1.", 0, 1)
    top_k: Whole | None = ranged("-1 or 0: off.", -1, None)
    min_p: Number | None = ranged("0 to 1.", 0, 1)
    seed: Whole | None = ranged("0 to 2^63-1; equal seeds give equal answers.", 0, MAX_INT64)
    ignore_eos: bool | None = Field(None, description="Do not stop at the model's end tokens.")
    min_tokens: Whole | None = ranged("No end within so many tokens.", 0, None)
    stop_token_ids: list[Whole] | None = Field(None, description="At most 300; the answer ends after any of them.")
    presence_penalty: Number | None = ranged("-2 to 2.", -2, 2)
    frequency_penalty: Number | None = ranged("-2 to 2.", -2, 2)
    repetition_penalty: Number | None = ranged("Above 0, at most 2.", 0, 2)
    logit_bias: dict[str, Number] | None = Field(None, description="By token id, -100 to 100 each; at most 300.")
    structured_outputs: StructuredOutputs | None = None
    slo: Targets | None = Field(None, description="What the request is counted against; headers say the same.")
    slo_class: str | None = Field(None, description="A class that the server knows, such as standard or offline.")
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = Field(
        None, description="flex is the class offline; the others change nothing."
    )
    priority: Whole | None = Field(None, description="Larger goes first; clamped to -10 … 10 and to the key's ceiling.")
    deadline_ms: Whole | None = ranged("For the whole answer; at least 100, clamped to 600,000.", 100, None)
    cache_salt: str | None = Field(None, description="KV is shared only between requests with the same salt.")
    return_token_ids: bool | None = Field(None, description="Tell the token ids of prompt and answer.")


class Sampled(Asked):
    """What chat completions and completions share beyond it."""

    stream_options: StreamOptions | None = None
    n: Whole | None = ranged("1 to 8 answers to the same prompt.", 1, 8)
    stop: Annotated[Texts | None, Field(description="At most 4 texts of 1 to 256 bytes.")] = None
    max_tokens: Whole | None = ranged("Length of the answer.", 1, MAX_INT32)
    prompt_logprobs: Whole | None = ranged("0 to 20; not with stream.", 0, 20)
    response_format: ResponseFormat | None = None


def asked_message(asked: Asked, headers: Mapping[str, str], client_id: str) -> pb.GenerateRequest:
    """All of a request but its prompt, format and logprobs. Raises FieldError for what a message cannot carry."""
    message = pb.GenerateRequest(request_id=client_id, model=_model(asked.model))
    params = message.sampling
    for name in NUMBERS:
        if (number := getattr(asked, name)) is not None:
            setattr(params, name, number)
    for name, most, code in WHOLES:
        if (value := getattr(asked, name, None)) is not None:
            setattr(params, name, fit(value, most, name, code))
    params.ignore_eos = bool(asked.ignore_eos)
    params.stop.extend(getattr(asked, "stop", None) or ())
    params.stop_token_ids.extend(
        fit(it, MAX_INT64, "stop_token_ids", "invalid_token_id") for it in asked.stop_token_ids or ()
    )
    for token, bias in (asked.logit_bias or {}).items():
        params.logit_bias[_token_id(token)] = bias
    _set_max_tokens(asked, params)
    _set_promises(asked, headers, message)
    return message


def names_in(asked: Asked, names: Mapping[str, str]) -> dict[str, str]:
    """What the gateway's fields are called in this very request, where one has several names."""
    called = {f"sampling.{name}": f"structured_outputs.{name}" for name in ("grammar", "regex", "choice")} | dict(names)
    given = [name for name in MAX_TOKENS_NAMES if getattr(asked, name, None) is not None]
    if given:
        called["sampling.max_tokens"] = given[0]
    if asked.structured_outputs is not None:
        called["sampling.json_schema"] = "structured_outputs.json"
    elif getattr(asked, "tool_choice", None) not in (None, "none", "auto"):
        called["sampling.json_schema"] = "tools"
    for name in ("ttft", "tpot"):
        in_s = asked.slo is not None and getattr(asked.slo, f"{name}_s") is not None
        called[f"slo.{name}_s"] = f"slo.{name}_{'s' if in_s else 'ms'}"
    return called


def set_format(params: pb.SamplingParams, asked: Asked, schema: str | None) -> None:
    """What the answer must be: `schema` is a JSON schema that the request's own fields ask for, None without one."""
    guided = asked.structured_outputs
    if guided is None:
        if schema is not None:
            params.json_schema = schema
        return
    given = [name for name, value in guided.model_dump(by_alias=True).items() if value not in (None, False)]
    if len(given) != 1 or schema is not None:
        problem = "must name exactly one format, and no response_format or forced tool beside it"
        raise FieldError("structured_outputs", problem, "invalid_request")
    if guided.json_ is not None:
        params.json_schema = guided.json_ if isinstance(guided.json_, str) else json.dumps(guided.json_)
    elif guided.json_object:
        params.json_schema = JSON_OBJECT
    elif guided.grammar is not None:
        params.grammar = guided.grammar
    elif guided.regex is not None:
        params.regex = guided.regex
    elif guided.choice:
        params.choice.extend(guided.choice)
    else:
        raise FieldError("structured_outputs.choice", "must not be empty", "invalid_grammar")


def format_schema(asked: ResponseFormat | None) -> str | None:
    """The JSON schema of a `response_format`; None where the answer is free text."""
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return JSON_OBJECT
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        raise FieldError("response_format.json_schema.schema", "is missing", "invalid_request")
    return json.dumps(asked.json_schema.schema_)


def _model(name: str | None) -> str:
    return (name or "")[: MAX_NAME_CHARS + 1]


def _token_id(token: str) -> int:
    if not _TOKEN_ID.fullmatch(token):
        raise FieldError("logit_bias", f"its keys must be token ids, one is {echoed(token)}", "invalid_token_id")
    return int(token)


def _set_max_tokens(asked: Asked, params: pb.SamplingParams) -> None:
    for name in MAX_TOKENS_NAMES:
        if (value := getattr(asked, name, None)) is not None:
            params.max_tokens = fit(value, MAX_INT64, name, "invalid_max_tokens")
            return


def _set_promises(asked: Asked, headers: Mapping[str, str], message: pb.GenerateRequest) -> None:
    """Targets, class, priority, deadline and salt; the body stands above the headers."""
    targets = asked.slo or Targets.model_construct()
    for name in ("ttft", "tpot"):
        value = _target_s(targets, name, headers)
        if value is not None:
            setattr(message.slo, f"{name}_s", value)
    tier = "offline" if asked.service_tier == "flex" else ""
    message.slo_class = asked.slo_class if asked.slo_class is not None else headers.get("x-slo-class", tier)
    if (priority := _whole_of(asked.priority, headers, "x-priority", "priority")) is not None:
        message.priority = max(-MAX_INT32, min(priority, MAX_INT32))
    if (deadline_ms := _whole_of(asked.deadline_ms, headers, "x-deadline-ms", "deadline_ms")) is not None:
        message.deadline_ms = max(-MAX_INT64, min(deadline_ms, MAX_INT64))
    message.cache_salt = asked.cache_salt or ""
    if asked.cache_salt == "":
        raise FieldError("cache_salt", "must not be empty", "invalid_cache_salt")


def _target_s(targets: Targets, name: str, headers: Mapping[str, str]) -> float | None:
    in_ms: float | None = getattr(targets, f"{name}_ms")
    in_s: float | None = getattr(targets, f"{name}_s")
    if in_ms is not None and in_s is not None:
        raise FieldError(f"slo.{name}_ms", f"is given beside {name}_s", "invalid_request")
    if in_s is not None:
        return in_s
    if in_ms is not None:
        return in_ms / MS_PER_S
    for header in (f"x-slo-{name}-ms", f"x-llm-d-slo-{name}-ms"):
        if (text := headers.get(header)) is not None:
            return _header_number(text, header) / MS_PER_S
    return None


def _whole_of(value: int | None, headers: Mapping[str, str], header: str, field: str) -> int | None:
    if value is not None or (text := headers.get(header)) is None:
        return value
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip()):
        raise FieldError(header, f"must be a whole number, is {echoed(text)}", "invalid_type")
    return int(text)


def _header_number(text: str, header: str) -> float:
    if not re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?", text.strip()):
        raise FieldError(header, f"must be a number of milliseconds, is {echoed(text)}", "invalid_type")
    return float(text)
