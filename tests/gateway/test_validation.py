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

INT64 = st.one_of(st.integers(-2, 520), st.integers(-(2**63), 2**63 - 1))
DOUBLE = st.one_of(st.floats(0, 2), st.floats())
SAMPLING = st.builds(
    pb.SamplingParams,
    max_tokens=st.none() | INT64,
    temperature=st.none() | DOUBLE,
    top_k=st.none() | INT64,
    top_p=st.none() | DOUBLE,
    min_p=st.none() | DOUBLE,
    seed=st.none() | INT64,
    stop_token_ids=st.lists(INT64, max_size=3),
    n=st.sampled_from([None, 1, 2, 0]),
)
MESSAGES = st.builds(
    pb.GenerateRequest,
    request_id=st.text(max_size=3),
    model=st.sampled_from(["", "tiny", "other", "../x"]),
    token_ids=st.builds(pb.TokenIds, ids=st.lists(st.integers(-1, 310), max_size=450)),
    sampling=SAMPLING,
    slo=st.none() | st.builds(pb.SLO, ttft_s=st.none() | DOUBLE, tpot_s=st.none() | DOUBLE),
    priority=st.integers(-(2**31), 2**31 - 1),
    tenant=st.sampled_from(["", "a-b_C9", "a b", "x" * 65]),
    deadline_ms=st.none() | INT64,
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
    assert 1 <= sampling.max_tokens <= 400 - num_tokens
    return sampling


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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
