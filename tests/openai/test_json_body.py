"""Bodies as JSON that means one thing only."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.gateway.openai.json_body import MAX_NODES, parse_fields
from core.errors import RequestError

LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8)


def grown(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)


VALUES = st.recursive(LEAVES, grown, max_leaves=20)
MEGABYTES = 8


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5), st.booleans())
def test_what_is_sound_json_is_read_as_json_reads_it(fields: dict[str, object], ascii_only: bool) -> None:
    data = json.dumps(fields, ensure_ascii=ascii_only).encode()
    assert parse_fields(data) == json.loads(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\ud8a1-0.eNI \n', max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        read, code = parse_fields(data), ""
    except RequestError as error:
        read, code = {}, error.code
    assert isinstance(read, dict)
    assert code in {"", "invalid_json", "invalid_utf8", "invalid_type", "json_too_complex"}


def test_numbers_are_not_counted_and_texts_are() -> None:
    ids = list(range(100_000))
    assert parse_fields(json.dumps({"prompt": ids}).encode()) == {"prompt": ids}
    most = json.dumps({"a": ["x"] * (MAX_NODES - 3)}).encode()
    assert parse_fields(most)
    with pytest.raises(RequestError, match="10000"):
        parse_fields(most[:-2] + b',"y"]}')


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": "' + b'\\"' * (MEGABYTES << 19),
        b'"' * (MEGABYTES << 20),
        b"[" * (MEGABYTES << 20),
        b"]" * (MEGABYTES << 20),
        b"\\" * (MEGABYTES << 20),
        b'{"a": ' + b"1," * (MEGABYTES << 19),
        b"-0" * (MEGABYTES << 19),
    ],
    ids=["escaped quotes", "quotes", "openers", "closers", "backslashes", "numbers", "minus zeros"],
)
def test_no_eight_megabytes_take_the_loop_for_long(data: bytes) -> None:
    """What would go through the bytes again and again would take hours here; the test's own time limit is the bound."""
    with pytest.raises(RequestError):
        parse_fields(data)


def test_a_minus_zero_stays_one() -> None:
    read = parse_fields(b'{"a": -0, "b": -0.5, "c": 10, "d": -7}')
    assert str(read["a"]) == "-0.0"
    assert (read["b"], read["c"], read["d"]) == (-0.5, 10, -7)
