"""The rows of the bad-input table that a gRPC client can cause, and the ends that only the cluster can."""

import math
from dataclasses import dataclass

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.keys import AccessSettings, Grant, Quota
from cluster.gateway.limits import Limits
from core.goodput import Outcome
from tests.gateway.fake_cluster import MAX_MODEL_LEN, VOCAB_SIZE
from tests.gateway.keyed import Keys

POOL = 300
LONG = 40_000
USUAL = Limits()
OPEN = AccessSettings()
KEYS = Keys(
    Grant("good"),
    Grant("ended", expires_at=1.0),
    Grant("other", models=("other",)),
    Grant("small", "acme", quota=Quota(tokens_per_minute=100, max_concurrent=1)),
)


GRAMMAR, SCHEMA, REGEX = (("invalid_grammar", f"sampling.{name}") for name in ("grammar", "json_schema", "regex"))
NO_TYPE = '{"properties": {"a": {"type": "strng"}}}'
SLOW = '{"allOf": [{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 8009}]}'


def text(prompt: str = "fox", **fields: object) -> bytes:
    return pb.GenerateRequest(text=prompt, **fields).SerializeToString()  # type: ignore[arg-type]


def sampling(**fields: object) -> bytes:
    return text(sampling=pb.SamplingParams(**fields))  # type: ignore[arg-type]


def ids(*token_ids: int, max_tokens: int | None = None) -> bytes:
    params = pb.SamplingParams(max_tokens=max_tokens)
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=token_ids), sampling=params).SerializeToString()


def scored(num_prompt_tokens: int, prompt_logprobs: int) -> bytes:
    params = pb.SamplingParams(max_tokens=1, prompt_logprobs=prompt_logprobs)
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * num_prompt_tokens), sampling=params).SerializeToString()


@dataclass(frozen=True)
class BadInput:
    """`row` is the number in the table of the reliability plan, 0 for what it does not list."""

    row: int
    name: str
    data: bytes
    status: str
    code: str
    field: str = ""
    limits: Limits = USUAL
    says: str = ""
    max_model_len: int = MAX_MODEL_LEN
    access: AccessSettings = OPEN
    key: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the call carries."""
        return (("authorization", self.key),) if self.key else ()


IA = "INVALID_ARGUMENT"
PRESENCE, REPEAT, BIAS = "sampling.presence_penalty", "sampling.repetition_penalty", "sampling.logit_bias[7]"
SMALL = Limits(max_pool_tokens=POOL)
INPUTS = (
    BadInput(3, "more than 8 MiB", text("x" * (8 * 1024 * 1024 + 1)), "RESOURCE_EXHAUSTED", "body_too_large"),
    BadInput(11, "unknown model", text(model="gpt-9"), "NOT_FOUND", "model_not_found", "model", says="'gpt-9'"),
    BadInput(11, "a path for a model", text(model="../../etc/passwd"), IA, "model_not_found", "model"),
    BadInput(11, "NUL in the model", text(model="a\0b"), IA, "model_not_found", "model"),
    BadInput(11, "a long model", text(model="m" * 129), IA, "model_not_found", "model", says="128"),
    BadInput(14, "NaN", sampling(temperature=math.nan), IA, "invalid_type", "sampling.temperature"),
    BadInput(14, "infinity", sampling(top_p=math.inf), IA, "invalid_type", "sampling.top_p"),
    BadInput(14, "minus infinity", sampling(min_p=-math.inf), IA, "invalid_type", "sampling.min_p"),
    BadInput(14, "minus zero", sampling(temperature=-0.0), IA, "invalid_type", "sampling.temperature"),
    BadInput(14, "NaN for a target", text(slo=pb.SLO(ttft_s=math.nan, tpot_s=1)), IA, "invalid_type", "slo.ttft_s"),
    BadInput(14, "NaN penalty", sampling(presence_penalty=math.nan), IA, "invalid_type", "sampling.presence_penalty"),
    BadInput(14, "-0 penalty", sampling(frequency_penalty=-0.0), IA, "invalid_type", "sampling.frequency_penalty"),
    BadInput(
        14, "inf penalty", sampling(repetition_penalty=math.inf), IA, "invalid_type", "sampling.repetition_penalty"
    ),
    BadInput(14, "NaN bias", sampling(logit_bias={7: math.nan}), IA, "invalid_type", "sampling.logit_bias[7]"),
    BadInput(15, "no prompt", b"", IA, "empty_prompt", "text"),
    BadInput(15, "empty text", text(""), IA, "empty_prompt", "text"),
    BadInput(15, "no token ids", ids(), IA, "empty_prompt", "token_ids"),
    BadInput(17, "text that fits in no way", text("x" * 8_000_000), IA, "context_length_exceeded", "text", says="512"),
    BadInput(16, "text not UTF-8", b"\x1a\x02\xff\xfe", IA, "invalid_utf8", "text"),
    BadInput(16, "lone surrogate", b"\x1a\x03\xed\xa0\x80", IA, "invalid_utf8", "text"),
    BadInput(16, "tenant not UTF-8", text() + b"\x4a\x01\xff", IA, "invalid_utf8", "tenant"),
    BadInput(16, "stop not UTF-8", text() + b"\x32\x04\xb2\x01\x01\xff", IA, "invalid_utf8", "sampling.stop"),
    BadInput(17, "token ids > context", ids(*[5] * 600), IA, "context_length_exceeded", "prompt", says="512"),
    BadInput(17, "text > context", text("x9 " * 900), IA, "context_length_exceeded", "prompt", says="512"),
    BadInput(17, "prompt = context", ids(*[5] * MAX_MODEL_LEN), IA, "context_length_exceeded", "prompt"),
    BadInput(18, "both", ids(*[5] * 500, max_tokens=13), IA, "context_length_exceeded", "sampling.max_tokens"),
    BadInput(
        19,
        "prompt > every pool",
        ids(*[5] * POOL),
        "FAILED_PRECONDITION",
        "request_too_large_for_cluster",
        "prompt",
        SMALL,
    ),
    BadInput(
        19,
        "both > every pool",
        ids(*[5] * 200, max_tokens=101),
        "FAILED_PRECONDITION",
        "request_too_large_for_cluster",
        "prompt",
        SMALL,
        "300",
    ),
    *(
        BadInput(20, f"max_tokens {value}", sampling(max_tokens=value), IA, "invalid_max_tokens", "sampling.max_tokens")
        for value in (0, -1, 2**31, 2**63 - 1, 10**18)
    ),
    BadInput(21, "min > max", sampling(min_tokens=9, max_tokens=8), IA, "invalid_min_tokens", "sampling.min_tokens"),
    BadInput(21, "min_tokens -1", sampling(min_tokens=-1), IA, "invalid_min_tokens", "sampling.min_tokens"),
    BadInput(
        21, "min > default", sampling(min_tokens=257), IA, "invalid_min_tokens", "sampling.min_tokens", says="256"
    ),
    BadInput(22, "n 0", sampling(n=0), IA, "invalid_n", "sampling.n"),
    BadInput(22, "n 9", sampling(n=9), IA, "invalid_n", "sampling.n", says="8"),
    BadInput(22, "n -1", sampling(n=-1), IA, "invalid_n", "sampling.n", says="1 to 8"),
    BadInput(23, "temperature 2.5", sampling(temperature=2.5), IA, "invalid_sampling", "sampling.temperature"),
    BadInput(23, "temperature < 0", sampling(temperature=-0.1), IA, "invalid_sampling", "sampling.temperature"),
    BadInput(23, "top_p 0", sampling(top_p=0), IA, "invalid_sampling", "sampling.top_p"),
    BadInput(23, "top_p 1.1", sampling(top_p=1.1), IA, "invalid_sampling", "sampling.top_p"),
    BadInput(23, "top_k -2", sampling(top_k=-2), IA, "invalid_sampling", "sampling.top_k"),
    BadInput(23, "min_p 2", sampling(min_p=2), IA, "invalid_sampling", "sampling.min_p"),
    BadInput(23, "penalty 3", sampling(frequency_penalty=3), IA, "invalid_sampling", "sampling.frequency_penalty"),
    *(
        BadInput(
            23, f"presence {value}", sampling(presence_penalty=value), IA, "invalid_sampling", PRESENCE, says="-2 to 2"
        )
        for value in (-2.1, 2.1)
    ),
    *(
        BadInput(
            23, f"repeat {value}", sampling(repetition_penalty=value), IA, "invalid_sampling", REPEAT, says="most 2"
        )
        for value in (0, -1, 2.1)
    ),
    *(
        BadInput(23, f"bias {value}", sampling(logit_bias={7: value}), IA, "invalid_sampling", BIAS, says="-100 to 100")
        for value in (-100.5, 101)
    ),
    BadInput(24, "stop id", sampling(stop_token_ids=[1, 300]), IA, "invalid_token_id", "sampling.stop_token_ids[1]"),
    BadInput(24, "301 stops", sampling(stop_token_ids=[1] * 301), IA, "invalid_token_id", "sampling.stop_token_ids"),
    BadInput(24, "stop id < 0", sampling(stop_token_ids=[-1]), IA, "invalid_token_id", "sampling.stop_token_ids[0]"),
    BadInput(24, "bias id < 0", sampling(logit_bias={-1: 1.0}), IA, "invalid_token_id", "sampling.logit_bias[-1]"),
    BadInput(
        24, "bias id", sampling(logit_bias={1: 1, VOCAB_SIZE: 1}), IA, "invalid_token_id", "sampling.logit_bias[300]"
    ),
    BadInput(
        24,
        "301 biases",
        sampling(logit_bias=dict.fromkeys(range(301), 1.0)),
        IA,
        "invalid_token_id",
        "sampling.logit_bias",
        says="300",
    ),
    BadInput(25, "prompt id too large", ids(1, VOCAB_SIZE), IA, "invalid_token_id", "token_ids.ids[1]", says="299"),
    BadInput(25, "prompt id < 0", ids(-1), IA, "invalid_token_id", "token_ids.ids[0]"),
    BadInput(25, "prompt id 2^62", ids(2**62), IA, "invalid_token_id", "token_ids.ids[0]"),
    BadInput(26, "5 stops", sampling(stop=list("abcde")), IA, "invalid_stop", "sampling.stop", says="4"),
    BadInput(26, "long stop", sampling(stop=["é" * 129]), IA, "invalid_stop", "sampling.stop[0]", says="256"),
    BadInput(26, "empty stop", sampling(stop=["a", ""]), IA, "invalid_stop", "sampling.stop[1]"),
    BadInput(27, "seed beyond", sampling(seed=-(2**63)), IA, "invalid_seed", "sampling.seed"),
    BadInput(28, "logprobs 21", sampling(logprobs=21), IA, "invalid_logprobs", "sampling.logprobs", says="20"),
    BadInput(28, "logprobs -1", sampling(logprobs=-1), IA, "invalid_logprobs", "sampling.logprobs"),
    BadInput(28, "of prompt 21", sampling(prompt_logprobs=21), IA, "invalid_logprobs", "sampling.prompt_logprobs"),
    BadInput(28, "of prompt -1", sampling(prompt_logprobs=-1), IA, "invalid_logprobs", "sampling.prompt_logprobs"),
    BadInput(
        28,
        "too many scores",
        scored(12_484, 20),
        IA,
        "invalid_logprobs",
        "sampling.prompt_logprobs",
        says="at most 262144",
        max_model_len=LONG,
    ),
    BadInput(
        28,
        "too long to score",
        scored(32_769, 0),
        IA,
        "invalid_logprobs",
        "sampling.prompt_logprobs",
        says="at most 32768",
        max_model_len=LONG,
    ),
    BadInput(31, "an undefined rule", sampling(grammar="root ::= x"), IA, *GRAMMAR, says="Rule 'x' not found"),
    BadInput(31, "no grammar", sampling(grammar='start: "a" ('), IA, *GRAMMAR, says="1(13)"),
    BadInput(31, "an empty grammar", sampling(grammar=""), IA, *GRAMMAR, says="not be empty"),
    BadInput(31, "schema keyword", sampling(json_schema='{"not": {}}'), IA, *SCHEMA, says="not (at /): not supported"),
    BadInput(31, "schema type", sampling(json_schema=NO_TYPE), IA, *SCHEMA, says="strng (at /properties/a)"),
    BadInput(31, "a slow schema", sampling(json_schema=SLOW), IA, *SCHEMA, says="processor time"),
    BadInput(31, "no regex", sampling(regex="a("), IA, *REGEX, says="unclosed group"),
    BadInput(31, "nothing matches", sampling(regex=r"[^\s\S]"), IA, *REGEX, says="no answer can match"),
    BadInput(31, "a long regex", sampling(regex="a" * 131_073), IA, *REGEX, says="at most 131072 bytes"),
    BadInput(31, "an empty choice", sampling(choice=["a", ""]), IA, "invalid_grammar", "sampling.choice[1]"),
    BadInput(31, "many choices", sampling(choice=["a"] * 1025), IA, "invalid_grammar", "sampling.choice", says="1024"),
    BadInput(31, "two formats", sampling(regex="a", choice=["a"]), IA, "invalid_grammar", "sampling.choice"),
    BadInput(33, "bad salt", text(cache_salt="a b"), IA, "invalid_cache_salt", "cache_salt", says="{1,64}"),
    BadInput(33, "long salt", text(cache_salt="s" * 65), IA, "invalid_cache_salt", "cache_salt"),
    BadInput(16, "salt not UTF-8", text() + b"\x62\x01\xff", IA, "invalid_utf8", "cache_salt"),
    BadInput(0, "unknown class", text(slo_class="premium"), IA, "invalid_slo_class", "slo_class", says="offline"),
    BadInput(9, "no key", text(), "UNAUTHENTICATED", "invalid_api_key", access=KEYS.settings, says="Bearer"),
    BadInput(9, "unknown key", text(), "UNAUTHENTICATED", "invalid_api_key", access=KEYS.settings, key="Bearer psk-x"),
    BadInput(9, "no bearer", text(), "UNAUTHENTICATED", "invalid_api_key", access=KEYS.settings, key="Basic psk-x"),
    BadInput(
        9, "ended key", text(), "UNAUTHENTICATED", "invalid_api_key", access=KEYS.settings, key=KEYS.header("ended")
    ),
    BadInput(
        10,
        "model of others",
        text(),
        "PERMISSION_DENIED",
        "model_forbidden",
        access=KEYS.settings,
        key=KEYS.header("other"),
    ),
    BadInput(
        10,
        "tenant of others",
        text(tenant="rival"),
        "PERMISSION_DENIED",
        "tenant_forbidden",
        access=KEYS.settings,
        key=KEYS.header("small"),
    ),
    BadInput(
        37,
        "more tokens than a minute has",
        sampling(max_tokens=200),
        "RESOURCE_EXHAUSTED",
        "rate_limit_exceeded",
        access=KEYS.settings,
        key=KEYS.header("small"),
        says="100 tokens",
    ),
    BadInput(
        37,
        "more at once than the key has",
        sampling(max_tokens=1, n=2),
        "RESOURCE_EXHAUSTED",
        "rate_limit_exceeded",
        access=KEYS.settings,
        key=KEYS.header("small"),
        says="1 requests at once",
    ),
    BadInput(34, "long request id", text(request_id="r" * 129), IA, "invalid_request_id", "request_id", says="128"),
    BadInput(34, "newline in the id", text(request_id="a\nb"), IA, "invalid_request_id", "request_id", says="'a\\nb'"),
    BadInput(34, "é in the id", text(request_id="é"), IA, "invalid_request_id", "request_id"),
    BadInput(36, "deadline 0", text(deadline_ms=0), "DEADLINE_EXCEEDED", "invalid_deadline", "deadline_ms"),
    BadInput(36, "deadline past", text(deadline_ms=-5), "DEADLINE_EXCEEDED", "invalid_deadline", "deadline_ms"),
    BadInput(36, "deadline 99 ms", text(deadline_ms=99), "DEADLINE_EXCEEDED", "invalid_deadline", "deadline_ms"),
    BadInput(38, "no free stream", text(), "RESOURCE_EXHAUSTED", "overloaded", "", Limits(max_streams=0)),
    BadInput(
        38, "no room for all choices", sampling(n=3), "RESOURCE_EXHAUSTED", "overloaded", "", Limits(max_streams=2), "2"
    ),
    BadInput(49, "malformed protobuf", b"\xff\xff\xff", IA, "invalid_request"),
    BadInput(49, "truncated protobuf", text("a long enough text")[:-3], IA, "invalid_request"),
    BadInput(0, "half an SLO", text(slo=pb.SLO(ttft_s=1)), IA, "invalid_request", "slo.tpot_s"),
    BadInput(0, "SLO 0", text(slo=pb.SLO(ttft_s=0, tpot_s=1)), IA, "invalid_request", "slo.ttft_s"),
    BadInput(0, "SLO 601 s", text(slo=pb.SLO(ttft_s=1, tpot_s=601)), IA, "invalid_request", "slo.tpot_s", says="600"),
    BadInput(0, "bad tenant", text(tenant="a b"), IA, "invalid_request", "tenant"),
    BadInput(0, "chat of ids", ids(1) + b"\x28\x01", IA, "invalid_request", "chat"),
)


@dataclass(frozen=True)
class Failure:
    """What the scheduler says of a sound request, after some tokens."""

    row: int
    outcome: Outcome
    code: str
    status: str
    after: int = 0
    retry_after_s: float | None = None


FAILURES = (
    Failure(19, Outcome.REFUSED, "request_too_large_for_cluster", "FAILED_PRECONDITION"),
    Failure(38, Outcome.REFUSED, "overloaded", "RESOURCE_EXHAUSTED", retry_after_s=1.5),
    Failure(39, Outcome.REFUSED, "slo_unattainable", "RESOURCE_EXHAUSTED"),
    Failure(40, Outcome.REFUSED, "draining", "UNAVAILABLE"),
    Failure(41, Outcome.REFUSED, "unavailable", "UNAVAILABLE", retry_after_s=0.25),
    Failure(42, Outcome.EXPIRED, "deadline_exceeded", "DEADLINE_EXCEEDED"),
    Failure(42, Outcome.EXPIRED, "deadline_exceeded", "DEADLINE_EXCEEDED", after=2),
    Failure(43, Outcome.FAILED, "worker_lost", "UNAVAILABLE"),
    Failure(43, Outcome.FAILED, "step_failed", "UNAVAILABLE"),
    Failure(43, Outcome.FAILED, "kv_lost", "UNAVAILABLE"),
    Failure(44, Outcome.FAILED, "worker_lost", "ABORTED", after=2),
    Failure(44, Outcome.FAILED, "step_failed", "ABORTED", after=2),
    Failure(44, Outcome.FAILED, "kv_lost", "ABORTED", after=2),
    Failure(45, Outcome.FAILED, "kv_corrupt", "DATA_LOSS"),
    Failure(45, Outcome.FAILED, "kv_corrupt", "DATA_LOSS", after=2),
    Failure(52, Outcome.FAILED, "internal", "INTERNAL"),
    Failure(52, Outcome.FAILED, "a code that nobody knows", "INTERNAL"),
)
ELSEWHERE = {"client_closed", "slow_reader", "not_found", "admin_forbidden", "unknown_node", "phase_uncovered"} | {
    "unsupported_parameter"
}
"""Codes with tests of their own: nobody is there to be told, no request was made, or it is another contract's."""
