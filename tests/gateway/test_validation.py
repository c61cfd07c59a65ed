"""The door under arbitrary messages: what it lets in is within the limits, what it refuses has a known code."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.errors_wire import ROWS
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.validation import check_prompt, read_envelope, read_sampling_for
from cluster.gateway.wire_parse import parse_generate
from core.errors import RequestError
from core.request import SamplingParams

MODEL = ServedModel("tiny", 300, 512, 16)
LIMITS = Limits(max_pool_tokens=400)
CODES = {row.code for row in ROWS}

INT64 = st.integers(-(2**63), 2**63 - 1)
DOUBLE = st.floats()


def mostly(usual: st.SearchStrategy[object], wild: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """One in thirty is wild, so that of messages with many fields some are let in."""
    return st.none() | st.integers(0, 29).flatmap(lambda die: usual if die else wild)


SAMPLING = st.builds(
    pb.SamplingParams,
    max_tokens=mostly(st.integers(1, 60), st.integers(-2, 520) | INT64),
    temperature=mostly(st.floats(0, 2), DOUBLE),
    top_k=mostly(st.integers(-1, 310), INT64),
    top_p=mostly(st.floats(0.01, 1), DOUBLE),
    min_p=mostly(st.floats(0, 1), DOUBLE),
    seed=mostly(st.integers(0, 2**63 - 1), INT64),
    stop_token_ids=st.lists(mostly(st.integers(0, 299), INT64).filter(lambda token: token is not None), max_size=3),
    n=mostly(st.integers(1, 8), st.integers(-1, 9)),
    stop=st.lists(mostly(st.sampled_from(["a", "END", "x" * 256]), st.sampled_from(["", "é" * 129])), max_size=5).map(
        lambda stops: [stop for stop in stops if stop is not None]
    ),
    min_tokens=mostly(st.integers(0, 3), INT64),
    presence_penalty=mostly(st.floats(0, 2), DOUBLE),
    frequency_penalty=mostly(st.floats(-2, -0.1), DOUBLE),
    repetition_penalty=mostly(st.floats(0.1, 2), DOUBLE),
    logit_bias=st.dictionaries(st.integers(0, 299), st.floats(1, 100), max_size=3)
    | st.dictionaries(st.integers(-1, 300), st.floats(-101, 101), max_size=2),
    logprobs=mostly(st.integers(0, 20), st.integers(-1, 21)),
    prompt_logprobs=mostly(st.integers(0, 20), st.integers(-1, 21)),
)
PROMPTS = (
    st.integers(1, 450).map(lambda length: [5] * length)
    | st.lists(st.integers(0, 299), min_size=1, max_size=9)
    | st.lists(st.integers(-1, 300), max_size=2)
)
MESSAGES = st.builds(
    pb.GenerateRequest,
    request_id=st.text(max_size=3),
    model=st.sampled_from(["", "", "tiny", "tiny", "other", "../x"]),
    token_ids=st.builds(pb.TokenIds, ids=PROMPTS),
    sampling=SAMPLING,
    slo=st.none()
    | st.builds(pb.SLO, ttft_s=mostly(st.floats(0.1, 9), DOUBLE), tpot_s=mostly(st.floats(0.1, 9), DOUBLE)),
    priority=st.integers(-(2**31), 2**31 - 1),
    tenant=st.sampled_from(["", "", "", "a-b_C9", "a b", "x" * 65]),
    deadline_ms=st.none() | st.integers(100, 10**6) | INT64,
)


def admitted(data: bytes) -> SamplingParams | None:
    """The sampling parameters of a request that is let in; None where it is refused, by a known code."""
    code = ""
    try:
        message = parse_generate(data, LIMITS.max_message_bytes)
        envelope = read_envelope(message, MODEL, LIMITS)
        check_prompt(message, MODEL)
        num_tokens = len(message.token_ids.ids) or len(message.text)
        sampling = read_sampling_for(message, num_tokens, MODEL, LIMITS)
    except RequestError as error:
        code = error.code
    if code:
        assert code in CODES
        return None
    assert 0.1 <= envelope.deadline_s <= 600
    assert -10 <= envelope.priority <= 10
    assert envelope.slo is None or (0 < envelope.slo.ttft_s <= 600 and 0 < envelope.slo.tpot_s <= 600)
    assert 1 <= envelope.num_choices <= 8
    assert len(envelope.stop) <= 4
    assert all(1 <= len(stop.encode()) <= 256 for stop in envelope.stop)
    assert 1 <= sampling.max_tokens <= 400 - num_tokens
    return sampling


@settings(max_examples=200, deadline=None)
@given(MESSAGES)
def test_what_is_let_in_is_within_the_limits(message: pb.GenerateRequest) -> None:
    sampling = admitted(message.SerializeToString())
    if sampling is None:
        return
    assert 0 <= sampling.temperature <= 2
    assert math.copysign(1, sampling.temperature) == 1
    assert 0 <= sampling.top_k < MODEL.vocab_size
    assert 0 < sampling.top_p <= 1
    assert 0 <= sampling.min_p <= 1
    assert 0 <= sampling.seed < 2**63
    assert all(0 <= token < MODEL.vocab_size for token in sampling.stop_token_ids)
    assert 0 <= sampling.min_tokens <= sampling.max_tokens
    assert -2 <= sampling.presence_penalty <= 2
    assert -2 <= sampling.frequency_penalty <= 2
    assert 0 < sampling.repetition_penalty <= 2
    assert all(0 <= token < MODEL.vocab_size and 0 < abs(bias) <= 100 for token, bias in sampling.logit_bias)
    assert sampling.logprobs is None or 0 <= sampling.logprobs <= 20
    assert sampling.prompt_logprobs is None or 0 <= sampling.prompt_logprobs <= 20
    assert sampling.choice == 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.builds(lambda m, b: m.SerializeToString()[:30] + b, MESSAGES, st.binary(max_size=8)))
def test_any_bytes_are_let_in_or_refused_by_a_known_code(data: bytes) -> None:
    admitted(data)


def test_a_request_without_a_length_gets_what_is_left_but_at_most_the_default() -> None:
    def length(num_prompt_tokens: int, limits: Limits) -> int:
        return read_sampling_for(pb.GenerateRequest(), num_prompt_tokens, MODEL, limits).max_tokens

    assert length(10, Limits()) == 256
    assert length(500, Limits()) == 12
    assert length(10, Limits(max_pool_tokens=100)) == 90
    assert length(10, Limits(default_max_tokens=16)) == 16


def read(num_prompt_tokens: int = 10, model: ServedModel = MODEL, **fields: object) -> SamplingParams:
    message = pb.GenerateRequest(sampling=pb.SamplingParams(max_tokens=9, seed=1, **fields))  # type: ignore[arg-type]
    return read_sampling_for(message, num_prompt_tokens, model, Limits())


def test_what_is_asked_for_is_what_the_nodes_are_told() -> None:
    assert read() == SamplingParams(9, seed=1)
    bias = {7: 100.0, 5: -100.0, 6: 0.0}
    asked = read(
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=0.5,
        logit_bias=bias,
        min_tokens=9,
        logprobs=20,
        prompt_logprobs=0,
        stop_token_ids=[3, 299],
    )
    assert asked == SamplingParams(
        9,
        seed=1,
        stop_token_ids=(3, 299),
        repetition_penalty=0.5,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias=((5, -100.0), (7, 100.0)),
        min_tokens=9,
        logprobs=20,
        prompt_logprobs=0,
    )


def test_limits_themselves_are_let_in() -> None:
    long = ServedModel("tiny", 300, 100_000, 16)
    assert read(repetition_penalty=2).repetition_penalty == 2
    assert len(read(logit_bias=dict.fromkeys(range(300), 1.0)).logit_bias) == 300
    assert read(32_768, long, prompt_logprobs=7).prompt_logprobs == 7
    assert read(12_483, long, prompt_logprobs=20).prompt_logprobs == 20


def test_no_more_alternatives_are_asked_for_than_there_are_tokens() -> None:
    assert read(model=ServedModel("tiny", 12, 512, 16), logprobs=20).logprobs == 12


def test_a_stop_string_named_twice_is_one() -> None:
    message = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(stop=["b", "a", "b"]))
    assert read_envelope(message, MODEL, LIMITS).stop == ("b", "a")
