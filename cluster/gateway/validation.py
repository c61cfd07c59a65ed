"""The door: a client's message to our types, every limit checked, every refusal by field and code."""

import re
from dataclasses import dataclass

from cluster.api.v1.inference_pb2 import GenerateRequest
from cluster.gateway.errors_wire import FieldError, Variant, echoed
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.sampling_checks import (
    check_number,
    check_token_ids,
    read_max_tokens,
    read_num_choices,
    read_sampling,
    read_stops,
)
from core.request import SLO, SamplingParams

MAX_NAME_CHARS = 128
MAX_SLO_S = 600.0
PRIORITY_CLAMPED = "priority_clamped"
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Envelope:
    """All of a request but its prompt and what the engine samples by.

    `cache_scope` names with whom its KV may be shared: equal scopes, equal keys. `notes` are codes of what was clamped.
    """

    client_id: str
    slo: SLO | None
    priority: int
    tenant: str
    deadline_s: float
    num_choices: int
    stop: tuple[str, ...]
    slo_class: str = ""
    cache_salt: str = ""
    cache_scope: str = ""
    notes: tuple[str, ...] = ()


def check_prompt(message: GenerateRequest, model: ServedModel) -> None:
    """Refuse what can be told before the text is made into tokens."""
    kind = message.WhichOneof("prompt")
    if kind is None or (kind == "text" and not message.text) or (kind == "token_ids" and not message.token_ids.ids):
        raise FieldError(kind or "text", "a prompt must not be empty", "empty_prompt")
    if kind == "token_ids":
        if message.chat:
            raise FieldError("chat", "needs the prompt as text", "invalid_request")
        check_length(len(message.token_ids.ids), model)
        check_token_ids(tuple(message.token_ids.ids), model.vocab_size, "token_ids.ids")


def check_length(num_prompt_tokens: int, model: ServedModel) -> None:
    """A prompt has a token and leaves room for one."""
    if num_prompt_tokens == 0:
        raise FieldError("text", "the prompt has no tokens", "empty_prompt")
    if num_prompt_tokens >= model.max_model_len:
        problem = f"{num_prompt_tokens} tokens leave no room in the context of {model.max_model_len}"
        raise FieldError("prompt", problem, "context_length_exceeded")


def check_text(text: str, max_token_chars: int, model: ServedModel) -> None:
    """Refuse what cannot fit however it is cut into tokens: cutting megabytes takes a core for half a minute."""
    limit = model.max_model_len * max_token_chars
    if len(text) > limit:
        problem = f"{len(text)} characters exceed the context of {model.max_model_len} tokens (at most {limit} fit)"
        raise FieldError("text", problem, "context_length_exceeded")


def read_envelope(message: GenerateRequest, model: ServedModel, limits: Limits) -> Envelope:
    """Names, targets, times and counts within their limits."""
    check_model(message.model, model)
    priority = max(-limits.max_priority, min(message.priority, limits.max_priority))
    return Envelope(
        client_id=_client_id(message.request_id),
        slo=_slo(message),
        priority=priority,
        tenant=_tenant(message.tenant),
        deadline_s=_deadline_s(message, limits),
        num_choices=read_num_choices(message.sampling),
        stop=read_stops(message.sampling),
        slo_class=message.slo_class,
        cache_salt=_cache_salt(message.cache_salt),
        notes=(PRIORITY_CLAMPED,) if priority != message.priority else (),
    )


def read_sampling_for(
    message: GenerateRequest, num_prompt_tokens: int, model: ServedModel, limits: Limits
) -> SamplingParams:
    """Sampling parameters whose answer fits behind the prompt, in the context and in a node's pool."""
    check_length(num_prompt_tokens, model)
    max_tokens = _max_tokens(read_max_tokens(message.sampling), num_prompt_tokens, model, limits)
    return read_sampling(message.sampling, model.vocab_size, max_tokens, num_prompt_tokens)


def _max_tokens(asked: int | None, num_prompt_tokens: int, model: ServedModel, limits: Limits) -> int:
    left = model.max_model_len - num_prompt_tokens
    if asked is not None and asked > left:
        problem = f"{num_prompt_tokens} prompt tokens and {asked} exceed the context of {model.max_model_len}"
        raise FieldError("sampling.max_tokens", problem, "context_length_exceeded")
    if limits.max_pool_tokens is None:
        return asked or min(left, limits.default_max_tokens)
    room = limits.max_pool_tokens - num_prompt_tokens
    if room < (asked or 1):
        problem = (
            f"{num_prompt_tokens} prompt tokens and {asked or 1} exceed every node's pool of {limits.max_pool_tokens}"
        )
        raise FieldError("prompt", problem, "request_too_large_for_cluster")
    return asked or min(left, room, limits.default_max_tokens)


def check_model(name: str, model: ServedModel, field: str = "model") -> None:
    """Refuse what is no model's name, or not that of the one served; an empty one is whichever is."""
    if len(name) > MAX_NAME_CHARS or not name.isprintable() or ".." in name.split("/"):
        problem = f"is not a model's name (at most {MAX_NAME_CHARS} printable characters): {echoed(name)}"
        raise FieldError(field, problem, "model_not_found", Variant.MALFORMED)
    if name not in ("", model.name):
        raise FieldError(field, f"{echoed(name)} is not served, {echoed(model.name)} is", "model_not_found")


def _client_id(name: str) -> str:
    if len(name) > MAX_NAME_CHARS or not (name.isascii() and name.isprintable()):
        problem = f"must be at most {MAX_NAME_CHARS} printable ASCII characters, is {echoed(name)}"
        raise FieldError("request_id", problem, "invalid_request_id")
    return name


def _tenant(name: str) -> str:
    if name and not _TENANT.fullmatch(name):
        raise FieldError("tenant", f"must match [A-Za-z0-9_-]{{1,64}}, is {echoed(name)}", "invalid_request")
    return name


def _cache_salt(salt: str) -> str:
    if salt and not _TENANT.fullmatch(salt):
        raise FieldError("cache_salt", f"must match [A-Za-z0-9_-]{{1,64}}, is {echoed(salt)}", "invalid_cache_salt")
    return salt


def _slo(message: GenerateRequest) -> SLO | None:
    if not message.HasField("slo"):
        return None
    for name in ("ttft_s", "tpot_s"):
        if not message.slo.HasField(name):
            raise FieldError(f"slo.{name}", "is missing: an SLO has both ttft_s and tpot_s", "invalid_request")
    return SLO(_target_s(message.slo.ttft_s, "slo.ttft_s"), _target_s(message.slo.tpot_s, "slo.tpot_s"))


def _target_s(value: float, field: str) -> float:
    if not 0 < check_number(value, field) <= MAX_SLO_S:
        raise FieldError(field, f"must be above 0 and at most {MAX_SLO_S:g} s, is {value:g}", "invalid_request")
    return value


def _deadline_s(message: GenerateRequest, limits: Limits) -> float:
    if not message.HasField("deadline_ms"):
        return limits.max_deadline_s
    asked_s = message.deadline_ms / 1000
    if asked_s < limits.min_deadline_s:
        least_ms = round(limits.min_deadline_s * 1000)
        raise FieldError("deadline_ms", f"must be at least {least_ms}, is {message.deadline_ms}", "invalid_deadline")
    return min(asked_s, limits.max_deadline_s)
