"""The door's checks of sampling parameters: ranges, and what is not served yet refused by name."""

import math
import secrets

from cluster.api.v1.inference_pb2 import SamplingParams as SamplingMessage
from cluster.gateway.errors_wire import FieldError
from core.request import SamplingParams

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_STOP_TOKEN_IDS = 300
MAX_LOGIT_BIAS = 300
MAX_STOPS = 4
MAX_STOP_BYTES = 256
MAX_N = 8
MAX_LOGPROBS = 20
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


def read_sampling(message: SamplingMessage, vocab_size: int, max_tokens: int) -> SamplingParams:
    """Sampling parameters within their limits; `max_tokens` is what `read_max_tokens` and the context made of it."""
    refuse_unserved(message, vocab_size)
    ids = tuple(message.stop_token_ids)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        problem = f"at most {MAX_STOP_TOKEN_IDS}, are {len(ids)}"
        raise FieldError("sampling.stop_token_ids", problem, "invalid_token_id")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_temperature(message),
        top_k=_top_k(message, vocab_size),
        top_p=_top_p(message),
        min_p=_min_p(message),
        seed=_seed(message),
        ignore_eos=message.ignore_eos,
        stop_token_ids=check_token_ids(ids, vocab_size, "sampling.stop_token_ids"),
    )


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


def refuse_unserved(message: SamplingMessage, vocab_size: int) -> None:
    """Fields that later versions serve: out of range is the caller's mistake, in range is refused by name."""
    _refuse_choices(message)
    _refuse_logprobs(message)
    _refuse_stops(message)
    _refuse_min_tokens(message)
    _refuse_penalties(message)
    _refuse_logit_bias(message, vocab_size)
    for name in ("grammar", "json_schema"):
        if message.HasField(name):
            raise _unserved(name)


def _unserved(name: str) -> FieldError:
    return FieldError(f"sampling.{name}", "is not served yet; leave it out", "unsupported_parameter")


def _refuse_choices(message: SamplingMessage) -> None:
    if not message.HasField("n") or message.n == 1:
        return
    if not 1 <= message.n <= MAX_N:
        raise FieldError("sampling.n", f"must be 1 to {MAX_N}, is {message.n}", "invalid_n")
    raise _unserved("n")


def _refuse_logprobs(message: SamplingMessage) -> None:
    if not message.HasField("logprobs"):
        return
    if not 0 <= message.logprobs <= MAX_LOGPROBS:
        raise FieldError("sampling.logprobs", f"must be 0 to {MAX_LOGPROBS}, is {message.logprobs}", "invalid_logprobs")
    raise _unserved("logprobs")


def _refuse_stops(message: SamplingMessage) -> None:
    if not message.stop:
        return
    if len(message.stop) > MAX_STOPS:
        raise FieldError("sampling.stop", f"at most {MAX_STOPS}, are {len(message.stop)}", "invalid_stop")
    for index, stop in enumerate(message.stop):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            problem = f"must have 1 to {MAX_STOP_BYTES} bytes, has {len(stop.encode())}"
            raise FieldError(f"sampling.stop[{index}]", problem, "invalid_stop")
    raise _unserved("stop")


def _refuse_min_tokens(message: SamplingMessage) -> None:
    value = message.min_tokens
    if value < 0 or (message.HasField("max_tokens") and value > message.max_tokens):
        raise FieldError("sampling.min_tokens", f"must be 0 to max_tokens, is {value}", "invalid_min_tokens")
    if value:
        raise _unserved("min_tokens")


def _refuse_penalties(message: SamplingMessage) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        value = check_number(getattr(message, name), f"sampling.{name}")
        if not -2 <= value <= 2:
            raise FieldError(f"sampling.{name}", f"must be -2 to 2, is {value:g}", "invalid_sampling")
        if value:
            raise _unserved(name)
    if message.HasField("repetition_penalty"):
        value = check_number(message.repetition_penalty, "sampling.repetition_penalty")
        if value <= 0:
            raise FieldError("sampling.repetition_penalty", f"must be above 0, is {value:g}", "invalid_sampling")
        if value != 1:
            raise _unserved("repetition_penalty")


def _refuse_logit_bias(message: SamplingMessage, vocab_size: int) -> None:
    if not message.logit_bias:
        return
    if len(message.logit_bias) > MAX_LOGIT_BIAS:
        problem = f"at most {MAX_LOGIT_BIAS} entries, are {len(message.logit_bias)}"
        raise FieldError("sampling.logit_bias", problem, "invalid_token_id")
    check_token_ids(tuple(message.logit_bias), vocab_size, "sampling.logit_bias")
    raise _unserved("logit_bias")
