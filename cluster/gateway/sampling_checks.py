"""The door's checks of sampling parameters: every range, but for formats (`cluster.gateway.formats`)."""

import math
import secrets

from cluster.api.v1.inference_pb2 import SamplingParams as SamplingMessage
from cluster.gateway.errors_wire import FieldError
from core.request import SamplingParams

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_STOP_TOKEN_IDS = 300
MAX_LOGIT_BIAS = 300
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
MAX_STOPS = 4
MAX_STOP_BYTES = 256
MAX_N = 8
MAX_LOGPROBS = 20
MAX_SCORED_PROMPT_TOKENS = 32_768
"""A message to the gateway has columns of at most this length (`cluster.codec.MAX_COLUMN`)."""

MAX_PROMPT_SCORES = 262_144
"""Values of a prompt's logprobs: they travel in one message and one response, below 4 MiB, gRPC's usual limit."""

MAX_TEMPERATURE = 2.0


def check_number(value: float, field: str) -> float:
    """A finite number. Negative zero is refused, too: it is never what was meant."""
    if not math.isfinite(value) or (value == 0 and math.copysign(1.0, value) < 0):
        raise FieldError(field, f"must be a finite number, is {value}", "invalid_type")
    return value


def check_token_ids(ids: tuple[int, ...], vocab_size: int, field: str) -> tuple[int, ...]:
    """Ids within the vocabulary."""
    for index, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise FieldError(f"{field}[{index}]", f"must be 0 to {vocab_size - 1}, is {token}", "invalid_token_id")
    return ids


def read_sampling(message: SamplingMessage, vocab_size: int, max_tokens: int, num_prompt_tokens: int) -> SamplingParams:
    """Sampling parameters within their limits; `max_tokens` is what `read_max_tokens` and the context made of it."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_temperature(message),
        top_k=_top_k(message, vocab_size),
        top_p=_top_p(message),
        min_p=_min_p(message),
        seed=_seed(message),
        ignore_eos=message.ignore_eos,
        stop_token_ids=_stop_token_ids(message, vocab_size),
        repetition_penalty=_repetition_penalty(message),
        presence_penalty=_penalty(message.presence_penalty, "sampling.presence_penalty"),
        frequency_penalty=_penalty(message.frequency_penalty, "sampling.frequency_penalty"),
        logit_bias=_logit_bias(message, vocab_size),
        min_tokens=_min_tokens(message, max_tokens),
        logprobs=_logprobs(message, "logprobs", vocab_size),
        prompt_logprobs=_prompt_logprobs(message, vocab_size, num_prompt_tokens),
    )


def read_num_choices(message: SamplingMessage) -> int:
    """How many answers were asked for."""
    if not message.HasField("n"):
        return 1
    if not 1 <= message.n <= MAX_N:
        raise FieldError("sampling.n", f"must be 1 to {MAX_N}, is {message.n}", "invalid_n")
    return message.n


def read_stops(message: SamplingMessage) -> tuple[str, ...]:
    """The stop strings, each once."""
    if len(message.stop) > MAX_STOPS:
        raise FieldError("sampling.stop", f"at most {MAX_STOPS}, are {len(message.stop)}", "invalid_stop")
    for index, stop in enumerate(message.stop):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            problem = f"must have 1 to {MAX_STOP_BYTES} bytes, has {len(stop.encode())}"
            raise FieldError(f"sampling.stop[{index}]", problem, "invalid_stop")
    return tuple(dict.fromkeys(message.stop))


def read_max_tokens(message: SamplingMessage) -> int | None:
    """The length that was asked for; None where none was."""
    if not message.HasField("max_tokens"):
        return None
    if not 1 <= message.max_tokens <= MAX_INT32:
        problem = f"must be 1 to {MAX_INT32}, is {message.max_tokens}"
        raise FieldError("sampling.max_tokens", problem, "invalid_max_tokens")
    return message.max_tokens


def _temperature(message: SamplingMessage) -> float:
    if not message.HasField("temperature"):
        return 1.0
    value = check_number(message.temperature, "sampling.temperature")
    if not 0 <= value <= MAX_TEMPERATURE:
        raise FieldError("sampling.temperature", f"must be 0 to {MAX_TEMPERATURE:g}, is {value:g}", "invalid_sampling")
    return value


def _top_k(message: SamplingMessage, vocab_size: int) -> int:
    """0 where the filter changes nothing."""
    value = message.top_k
    if value < -1:
        raise FieldError("sampling.top_k", f"must be -1, 0 (both: off) or above, is {value}", "invalid_sampling")
    return 0 if value == -1 or value >= vocab_size else value


def _top_p(message: SamplingMessage) -> float:
    if not message.HasField("top_p"):
        return 1.0
    value = check_number(message.top_p, "sampling.top_p")
    if not 0 < value <= 1:
        raise FieldError("sampling.top_p", f"must be above 0 and at most 1, is {value:g}", "invalid_sampling")
    return value


def _min_p(message: SamplingMessage) -> float:
    value = check_number(message.min_p, "sampling.min_p")
    if not 0 <= value <= 1:
        raise FieldError("sampling.min_p", f"must be 0 to 1, is {value:g}", "invalid_sampling")
    return value


def _seed(message: SamplingMessage) -> int:
    if not message.HasField("seed"):
        return secrets.randbits(63)
    if message.seed < 0:
        raise FieldError("sampling.seed", f"must be 0 to {MAX_INT64}, is {message.seed}", "invalid_seed")
    return message.seed


def _stop_token_ids(message: SamplingMessage, vocab_size: int) -> tuple[int, ...]:
    ids = tuple(message.stop_token_ids)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        problem = f"at most {MAX_STOP_TOKEN_IDS}, are {len(ids)}"
        raise FieldError("sampling.stop_token_ids", problem, "invalid_token_id")
    return check_token_ids(ids, vocab_size, "sampling.stop_token_ids")


def _min_tokens(message: SamplingMessage, max_tokens: int) -> int:
    value = message.min_tokens
    if not 0 <= value <= max_tokens:
        problem = f"must be 0 to max_tokens, here {max_tokens}, is {value}"
        raise FieldError("sampling.min_tokens", problem, "invalid_min_tokens")
    return value


def _penalty(value: float, field: str) -> float:
    if not -MAX_PENALTY <= check_number(value, field) <= MAX_PENALTY:
        raise FieldError(field, f"must be -{MAX_PENALTY:g} to {MAX_PENALTY:g}, is {value:g}", "invalid_sampling")
    return value


def _repetition_penalty(message: SamplingMessage) -> float:
    if not message.HasField("repetition_penalty"):
        return 1.0
    value, field = message.repetition_penalty, "sampling.repetition_penalty"
    if not 0 < check_number(value, field) <= MAX_PENALTY:
        raise FieldError(field, f"must be above 0 and at most {MAX_PENALTY:g}, is {value:g}", "invalid_sampling")
    return value


def _logit_bias(message: SamplingMessage, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """By token id; those that change nothing are left out."""
    if len(message.logit_bias) > MAX_LOGIT_BIAS:
        problem = f"at most {MAX_LOGIT_BIAS} entries, are {len(message.logit_bias)}"
        raise FieldError("sampling.logit_bias", problem, "invalid_token_id")
    for token, bias in sorted(message.logit_bias.items()):
        field = f"sampling.logit_bias[{token}]"
        if not 0 <= token < vocab_size:
            raise FieldError(field, f"must be of a token from 0 to {vocab_size - 1}", "invalid_token_id")
        if not -MAX_BIAS <= check_number(bias, field) <= MAX_BIAS:
            raise FieldError(field, f"must be -{MAX_BIAS:g} to {MAX_BIAS:g}, is {bias:g}", "invalid_sampling")
    return tuple(sorted((token, bias) for token, bias in message.logit_bias.items() if bias))


def _logprobs(message: SamplingMessage, name: str, vocab_size: int) -> int | None:
    """How many best tokens to tell; no more than there are."""
    if not message.HasField(name):
        return None
    value: int = getattr(message, name)
    if not 0 <= value <= MAX_LOGPROBS:
        raise FieldError(f"sampling.{name}", f"must be 0 to {MAX_LOGPROBS}, is {value}", "invalid_logprobs")
    return min(value, vocab_size)


def _prompt_logprobs(message: SamplingMessage, vocab_size: int, num_prompt_tokens: int) -> int | None:
    value = _logprobs(message, "prompt_logprobs", vocab_size)
    if value is None:
        return None
    num_scores, field = num_prompt_tokens * (value + 1), "sampling.prompt_logprobs"
    if num_prompt_tokens > MAX_SCORED_PROMPT_TOKENS:
        problem = f"at most {MAX_SCORED_PROMPT_TOKENS} prompt tokens can be told of, are {num_prompt_tokens}"
        raise FieldError(field, problem, "invalid_logprobs")
    if num_scores > MAX_PROMPT_SCORES:
        problem = f"{num_prompt_tokens} prompt tokens times {value + 1} are {num_scores}, at most {MAX_PROMPT_SCORES}"
        raise FieldError(field, problem, "invalid_logprobs")
    return value
