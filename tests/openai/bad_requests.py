"""The bad-input table over HTTP: the rows that gRPC has, said in JSON, and those that only HTTP can cause."""

import json
import re
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.errors_wire import ROWS, Variant
from tests.gateway.bad_inputs import INPUTS, BadInput
from tests.openai.asking import CHAT, COMPLETIONS

SAMPLING_NUMBERS = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "n", "logprobs", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "prompt_logprobs"),
)
NOT_IN_JSON = {"tenant of others", "bad tenant", "chat of ids", "newline in the id", "min > default", "two formats"}
"""Rows of fields that HTTP does not have, of what no header can hold, and of another default length."""

PARAMS = {
    "text": "prompt",
    "token_ids": "prompt",
    "request_id": "x-request-id",
    "sampling.grammar": "structured_outputs.grammar",
    "sampling.json_schema": "response_format",
    "sampling.regex": "structured_outputs.regex",
    "sampling.choice": "structured_outputs.choice",
    "sampling.choice[1]": "structured_outputs.choice[1]",
}


@dataclass(frozen=True)
class Told:
    """One row of gRPC's table, as HTTP says it: its body, its headers, and the answer that must come."""

    bad: BadInput
    body: bytes
    headers: dict[str, str]
    status: int
    param: str | None


def told_in_json() -> list[Told]:
    """All rows of gRPC's table that JSON can say."""
    said = []
    for bad in INPUTS:
        try:
            message = pb.GenerateRequest.FromString(bad.data)
        except DecodeError:
            continue
        if bad.name not in NOT_IN_JSON:
            said.append(_told(bad, message))
    return said


def _told(bad: BadInput, message: pb.GenerateRequest) -> Told:
    headers = {"content-type": "application/json"} | ({"authorization": bad.key} if bad.key else {})
    if message.request_id:
        headers["x-request-id"] = message.request_id
    body = json.dumps(_fields(message), default=str).encode()
    field = re.sub(r"^token_ids\.ids", "prompt", bad.field)
    param = PARAMS.get(field, field.removeprefix("sampling.")) or None
    if bad.name == "half an SLO":
        param = "slo.tpot_ms"  # the half that is not there has no unit yet
    return Told(bad, body, headers, _status(bad), param)


def _fields(message: pb.GenerateRequest) -> dict[str, object]:
    fields: dict[str, object] = {}
    if (kind := message.WhichOneof("prompt")) is not None:
        fields["prompt"] = message.text if kind == "text" else list(message.token_ids.ids)
    for name in ("model", "slo_class", "cache_salt", "priority"):
        if value := getattr(message, name):
            fields[name] = value
    if message.HasField("deadline_ms"):
        fields["deadline_ms"] = message.deadline_ms
    if message.HasField("slo"):
        fields["slo"] = {it.name: value for it, value in message.slo.ListFields()}
    sampling = message.sampling
    named = {it.name: value for it, value in sampling.ListFields()}
    fields |= {name: named[name] for name in SAMPLING_NUMBERS if name in named}
    fields |= {name: list(named[name]) for name in ("stop", "stop_token_ids") if name in named}
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if "max_tokens" not in named:
        fields["max_tokens"] = None
    for name in ("grammar", "regex"):
        if sampling.HasField(name):
            fields["structured_outputs"] = {name: getattr(sampling, name)}
    if sampling.choice:
        fields["structured_outputs"] = {"choice": list(sampling.choice)}
    if sampling.HasField("json_schema"):
        schema = {"name": "x", "schema": json.loads(sampling.json_schema)}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def _status(bad: BadInput) -> int:
    """The HTTP status of a row; a name that cannot be one is malformed, not missing."""
    rows = [row for row in ROWS if row.code == bad.code and row.grpc.name == bad.status]
    (status,) = {row.http for row in rows if row.variant is not Variant.AFTER_TOKENS}
    return status


@dataclass(frozen=True)
class BadRequest:
    """A row that only HTTP has; `row` is its number in the reliability plan's table, 0 for what that does not list."""

    row: int
    name: str
    body: bytes
    status: int
    code: str
    param: str | None = None
    path: str = COMPLETIONS
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


def completion(**fields: object) -> bytes:
    return json.dumps({"prompt": "fox"} | fields).encode()


def raw(text: str) -> bytes:
    """A prompt, and these further fields as they are written."""
    return f'{{"prompt": "fox", {text}}}'.encode()


def chat(messages: object, **fields: object) -> bytes:
    return json.dumps({"messages": messages} | fields).encode()


USER = {"role": "user", "content": "fox"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://example.com/x.png"}}
PLAIN, GZIPPED = {"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}
DEEP = b'{"prompt": ' + b"[" * 32 + b"]" * 32 + b"}"
MANY = json.dumps({"prompt": ["x"] * 10_001}).encode()
CLOSED = b'{"prompt": "fox"' + b"]" * 1000
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x"}}

HTTP_ONLY = (
    BadRequest(1, "no JSON", b"prompt=fox", 400, "invalid_json"),
    BadRequest(1, "nothing", b"", 400, "invalid_json"),
    BadRequest(1, "truncated", b'{"prompt": "fo', 400, "invalid_json"),
    BadRequest(1, "a key twice", b'{"prompt": "a", "n": 1, "prompt": "b"}', 400, "invalid_json", "prompt"),
    BadRequest(1, "a key twice inside", raw('"slo": {"ttft_ms": 1, "ttft_ms": 2}'), 400, "invalid_json", "ttft_ms"),
    BadRequest(1, "more behind it", completion() + b"{}", 400, "invalid_json"),
    BadRequest(1, "brackets that close nothing", CLOSED, 400, "invalid_json"),
    BadRequest(1, "five thousand digits", raw(f'"seed": {"9" * 5000}'), 400, "invalid_json"),
    BadRequest(1, "a list", b"[1]", 400, "invalid_type"),
    BadRequest(2, "33 levels", DEEP, 400, "json_too_complex"),
    BadRequest(2, "10,001 texts", MANY, 400, "json_too_complex"),
    BadRequest(6, "text/plain", completion(), 415, "unsupported_media_type", headers=PLAIN),
    BadRequest(6, "no content type", completion(), 415, "unsupported_media_type", headers={}),
    BadRequest(6, "compressed", completion(), 415, "unsupported_media_type", headers=GZIPPED),
    BadRequest(7, "unknown route", completion(), 404, "not_found", path="/v1/embeddings"),
    BadRequest(7, "a route above", completion(), 404, "not_found", path="/v1/../v1/completions/"),
    BadRequest(7, "posted to a GET", completion(), 405, "method_not_allowed", path="/v1/models"),
    BadRequest(12, "unknown field", completion(temprature=1), 400, "unknown_parameter", "temprature"),
    BadRequest(12, "unknown field inside", completion(slo={"x": 1}), 400, "unknown_parameter", "slo.x"),
    BadRequest(12, "of chat only", completion(tools=[]), 400, "unknown_parameter", "tools"),
    BadRequest(13, "a peer", completion(bootstrap_host="10.0.0.1"), 400, "reserved_parameter", "bootstrap_host"),
    BadRequest(13, "a transfer", completion(kv_transfer_params={}), 400, "reserved_parameter", "kv_transfer_params"),
    BadRequest(13, "a rank", completion(data_parallel_rank=0), 400, "reserved_parameter", "data_parallel_rank"),
    BadRequest(14, "1e999", raw('"temperature": 1e999'), 400, "invalid_type", "temperature"),
    BadRequest(14, "NaN literal", raw('"top_p": NaN'), 400, "invalid_type", "top_p"),
    BadRequest(14, "whole -0", raw('"temperature": -0'), 400, "invalid_type", "temperature"),
    BadRequest(14, "-0 for a whole number", raw('"n": -0'), 400, "invalid_type", "n"),
    BadRequest(14, "true for a number", completion(temperature=True), 400, "invalid_type", "temperature"),
    BadRequest(14, "true for a whole number", completion(max_tokens=True), 400, "invalid_type", "max_tokens"),
    BadRequest(14, "text for a number", completion(n="1"), 400, "invalid_type", "n"),
    BadRequest(14, "a half for a whole number", completion(max_tokens=1.5), 400, "invalid_type", "max_tokens"),
    BadRequest(14, "number for a flag", completion(stream=1), 400, "invalid_type", "stream"),
    BadRequest(14, "number in stop", completion(stop=["a", 1]), 400, "invalid_type", "stop[1]"),
    BadRequest(14, "prompt of another type", completion(prompt={}), 400, "invalid_type", "prompt"),
    BadRequest(14, "prompts of two types", completion(prompt=["a", 1]), 400, "invalid_type", "prompt[1]"),
    BadRequest(14, "ids of two types", completion(prompt=[[1, "a"]]), 400, "invalid_type", "prompt[0][1]"),
    BadRequest(14, "true among the ids", completion(prompt=[1, True]), 400, "invalid_type", "prompt[1]"),
    BadRequest(14, "messages are text", chat("fox"), 400, "invalid_type", "messages", CHAT),
    BadRequest(14, "a message is text", chat(["fox"]), 400, "invalid_type", "messages[0]", CHAT),
    BadRequest(14, "a role that is none", chat([USER | {"role": "x"}]), 400, "invalid_type", "messages[0].role", CHAT),
    BadRequest(15, "no prompt at all", b"{}", 400, "empty_prompt", "prompt"),
    BadRequest(15, "one empty text", completion(prompt=["a", ""]), 400, "empty_prompt", "prompt[1]"),
    BadRequest(15, "one empty list", completion(prompt=[[1], []]), 400, "empty_prompt", "prompt[1]"),
    BadRequest(15, "no messages", b"{}", 400, "empty_prompt", "messages", CHAT),
    BadRequest(15, "empty messages", chat([]), 400, "empty_prompt", "messages", CHAT),
    BadRequest(15, "no role", chat([{"content": "fox"}]), 400, "empty_prompt", "messages[0].role", CHAT),
    BadRequest(15, "no content", chat([{"role": "user"}]), 400, "empty_prompt", "messages[0].content", CHAT),
    BadRequest(16, "half a surrogate", b'{"prompt": "a\\ud800"}', 400, "invalid_utf8", "prompt"),
    BadRequest(16, "bytes not UTF-8", b'{"prompt": "\xff"}', 400, "invalid_utf8"),
    BadRequest(20, "max_tokens 2^63", completion(max_tokens=2**63), 400, "invalid_max_tokens", "max_tokens"),
    BadRequest(20, "max_tokens 1e18", raw('"max_tokens": 1e18'), 400, "invalid_max_tokens", "max_tokens"),
    BadRequest(
        20,
        "newer name",
        chat([USER], max_completion_tokens=0),
        400,
        "invalid_max_tokens",
        "max_completion_tokens",
        CHAT,
    ),
    BadRequest(22, "best_of", completion(best_of=2), 400, "invalid_n", "best_of"),
    BadRequest(22, "n 2^31", completion(n=2**31), 400, "invalid_n", "n"),
    BadRequest(22, "129 prompts", completion(prompt=["a"] * 129), 400, "invalid_request", "prompt"),
    BadRequest(24, "bias of no token", completion(logit_bias={"fox": 1}), 400, "invalid_token_id", "logit_bias"),
    BadRequest(25, "prompt id 2^70", completion(prompt=[2**70]), 400, "invalid_token_id", "prompt[0]"),
    BadRequest(27, "seed 2^64", completion(seed=2**64), 400, "invalid_seed", "seed"),
    BadRequest(28, "top without logprobs", chat([USER], top_logprobs=1), 400, "invalid_logprobs", "top_logprobs", CHAT),
    BadRequest(
        28,
        "top_logprobs 21",
        chat([USER], logprobs=True, top_logprobs=21),
        400,
        "invalid_logprobs",
        "top_logprobs",
        CHAT,
    ),
    BadRequest(
        28,
        "of the prompt in a stream",
        completion(prompt_logprobs=1, stream=True),
        400,
        "invalid_logprobs",
        "prompt_logprobs",
    ),
    BadRequest(29, "a template", chat([USER], chat_template="x"), 400, "unsupported_parameter", "chat_template", CHAT),
    BadRequest(
        29,
        "its arguments",
        chat([USER], chat_template_kwargs={"a": 1}),
        400,
        "unsupported_parameter",
        "chat_template_kwargs",
        CHAT,
    ),
    BadRequest(
        30,
        "an image",
        chat([USER | {"content": [IMAGE]}]),
        400,
        "unsupported_content",
        "messages[0].content[0].type",
        CHAT,
    ),
    BadRequest(30, "sound", chat([USER], audio={"voice": "x"}), 400, "unsupported_content", "audio", CHAT),
    BadRequest(
        30,
        "a part of no kind",
        chat([{"role": "user", "content": [{"type": {}, "text": "a"}]}]),
        400,
        "unsupported_content",
        "messages[0].content[0].type",
        CHAT,
    ),
    BadRequest(32, "embeddings", completion(prompt_embeds="AAAA"), 400, "unsupported_content", "prompt_embeds"),
    BadRequest(33, "an empty salt", completion(cache_salt=""), 400, "invalid_cache_salt", "cache_salt"),
    BadRequest(0, "a suffix", completion(suffix="x"), 400, "unsupported_parameter", "suffix"),
    BadRequest(
        0,
        "echo with scores in a stream",
        completion(echo=True, logprobs=1, stream=True),
        400,
        "unsupported_parameter",
        "echo",
    ),
    BadRequest(0, "a message's own field", chat([USER | {"x": 1}]), 400, "unknown_parameter", "messages[0].x", CHAT),
    BadRequest(
        0,
        "a tool forced without tools",
        chat([USER], tool_choice="required"),
        400,
        "invalid_request",
        "tool_choice",
        CHAT,
    ),
    BadRequest(
        0,
        "a tool of another kind",
        chat([USER], tools=[TOOL | {"type": "x"}]),
        400,
        "invalid_type",
        "tools[0].type",
        CHAT,
    ),
    BadRequest(
        0,
        "a schema without one",
        completion(response_format=SCHEMA),
        400,
        "invalid_request",
        "response_format.json_schema.schema",
    ),
    BadRequest(
        0,
        "two formats",
        completion(structured_outputs={"regex": "a", "json": {}}),
        400,
        "invalid_request",
        "structured_outputs",
    ),
    BadRequest(0, "ttft twice", completion(slo={"ttft_ms": 1, "ttft_s": 1}), 400, "invalid_request", "slo.ttft_ms"),
    BadRequest(0, "a tier that is none", completion(service_tier="gold"), 400, "invalid_type", "service_tier"),
)
