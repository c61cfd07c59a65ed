import contextlib
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, NewType, Union, cast, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import codec
from cluster.codec import CodecError, decode, decode_many, encode, encode_many
from core.events import Event, FinishReason, Offered, StreamEnded, Tick, TokensEmitted
from core.goodput import Outcome
from core.ids import AttemptId, GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVHandle
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.stats import Timing

PRIMITIVES: dict[object, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    str: st.text(max_size=8),
    bytes: st.binary(max_size=8),
}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation, derived without the codec's own reading of it."""
    if isinstance(annotation, NewType):
        return values_of(annotation.__supertype__)
    if annotation in PRIMITIVES:
        return PRIMITIVES[annotation]
    if get_origin(annotation) in (Union, UnionType):
        return st.one_of([st.none() if arm is NoneType else values_of(arm) for arm in get_args(annotation)])
    if get_origin(annotation) is tuple and ... not in get_args(annotation):
        return st.tuples(*(values_of(item) for item in get_args(annotation)))
    if get_origin(annotation) is tuple:
        return st.lists(values_of(get_args(annotation)[0]), max_size=3).map(tuple)
    if issubclass(annotation, StrEnum):
        return st.sampled_from(list(annotation))
    assert is_dataclass(annotation)
    hints = get_type_hints(annotation)
    return st.builds(
        cast(Callable[..., Any], annotation),
        **{field.name: values_of(hints[field.name]) for field in fields(annotation)},
    )


EVENTS = {kind.__name__: values_of(kind) for kind in get_args(Event)}
ANY_EVENT = st.one_of(list(EVENTS.values()))
JUNK = st.recursive(
    st.one_of([st.none(), st.floats(), *(PRIMITIVES[kind] for kind in (int, bool, str, bytes))]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tokens(num_rows: int = 2) -> TokensEmitted:
    return TokensEmitted(
        attempts=tuple(AttemptId(f"{i:032x}#1") for i in range(num_rows)),
        indices=tuple(range(num_rows)),
        token_ids=tuple(range(1000, 1000 + num_rows)),
        finishes=(FinishReason.STOP, *[None] * (num_rows - 1)),
        timings=(Timing(admit_s=0.5), *[None] * (num_rows - 1)),
    )


def offered(num_tokens: int = 20) -> Offered:
    blocks = -(-num_tokens // 16)
    request = Request(
        RequestId("r"), Prompt(num_tokens, (b"k" * 16,) * blocks), pack_tokens(range(num_tokens)), SamplingParams(64)
    )
    handle = KVHandle(
        AttemptId("r#1"), NodeId("a@1"), LayoutId("l"), 0, tuple(range(blocks)), (7,) * blocks, (b"d" * 16,) * blocks
    )
    return Offered(AttemptId("r#1"), request, b"", GatewayId("g"), handle, None)


def refused(message: object) -> str:
    with pytest.raises(CodecError) as error:
        decode(msgpack.packb(message))
    return str(error.value)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event_comes_back_equal_and_of_its_own_type(name: str) -> None:
    @quick
    @given(EVENTS[name])
    def round_trip(event: Event) -> None:
        back = decode(encode(event))
        assert type(back) is type(event)
        assert back == event
        assert repr(back) == repr(event)  # also tells 1 from True and from 1.0

    round_trip()


@quick
@given(st.lists(st.tuples(st.text(max_size=5), ANY_EVENT), max_size=4))
def test_an_envelope_keeps_addresses_events_and_order(pairs: list[tuple[str, Event]]) -> None:
    assert decode_many(encode_many(pairs)) == pairs


@many
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_a_codec_error(data: bytes) -> None:
    for reader in (decode, decode_many):
        with contextlib.suppress(CodecError):
            reader(data)


@many
@given(JUNK)
def test_arbitrary_messagepack_raises_nothing_but_a_codec_error(value: object) -> None:
    refused([codec.WIRE_VERSION, "Tick", value])
    for data in (msgpack.packb(value), msgpack.packb([["a", value]])):
        for reader in (decode, decode_many):
            with contextlib.suppress(CodecError):
                assert reader(data) == []  # the empty envelope is the only sound message of this kind


@many
@given(ANY_EVENT, st.data())
def test_a_message_with_changed_bytes_is_another_event_or_a_codec_error(event: Event, data: st.DataObject) -> None:
    message = bytearray(encode(event))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        back = decode(bytes(message))
    except CodecError:
        return
    assert decode(encode(back)) == back


@many
@given(ANY_EVENT, JUNK, st.data())
def test_a_field_replaced_by_something_else_is_named_or_still_of_its_type(
    event: Event, junk: object, data: st.DataObject
) -> None:
    message = msgpack.unpackb(encode(event))
    if len(message) == 2:
        return
    at = data.draw(st.integers(2, len(message) - 1))
    message[at] = junk
    try:
        back = decode(msgpack.packb(message))
    except CodecError as error:
        problem = str(error)
    else:
        assert encode(back) == msgpack.packb(message)
        return
    assert problem.startswith(("message: not MessagePack", f"{type(event).__name__}.{fields(event)[at - 2].name}"))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_truncated_message_is_refused(cut: int) -> None:
    with pytest.raises(CodecError):
        decode(encode(tokens())[:-cut])


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(CodecError, match="extra data"):
        decode(encode(Tick()) + b"\x00")


def test_another_version_is_refused() -> None:
    assert "version 2" in refused([2, "Tick"])


def test_an_unknown_name_is_refused_even_if_it_is_a_class_of_ours() -> None:
    assert "'SamplingParams' is not an event" in refused([1, "SamplingParams", 1])


def test_too_many_and_too_few_fields_are_refused() -> None:
    assert refused([1, "Tick", 0]) == "Tick: has 1 fields; Tick has 0"
    assert refused([1, "StreamEnded", "r"]) == "StreamEnded: has 1 fields; StreamEnded has 4"


def test_a_bool_is_not_an_int() -> None:
    assert refused([1, "KVArrived", "r#1", True]) == "KVArrived.fetch: must be int, not bool"


def test_an_int_is_not_a_float_on_the_wire() -> None:
    message = msgpack.unpackb(encode(tokens()))
    message[6][0][0] = 1
    assert refused(message) == "TokensEmitted.timings[0].admit_s: must be float, not int"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_that_are_not_finite_are_refused_both_ways(value: float) -> None:
    with pytest.raises(CodecError, match=r"TokensEmitted\.timings\[0\]\.decode_s: must be finite"):
        encode(replace(tokens(1), timings=(Timing(decode_s=value),)))
    message = msgpack.unpackb(encode(tokens()))
    message[6][0][6] = value
    assert "TokensEmitted.timings[0].decode_s: must be finite" in refused(message)


def test_an_int_given_for_a_float_travels_as_a_float() -> None:
    back = decode(encode(replace(tokens(1), timings=(Timing(admit_s=3),))))
    assert isinstance(back, TokensEmitted)
    assert back.timings[0] is not None
    assert type(back.timings[0].admit_s) is float


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_an_int_beyond_64_bits_is_refused(value: int) -> None:
    with pytest.raises(CodecError, match="TokensEmitted: an int beyond 64 bits"):
        encode(replace(tokens(1), indices=(value,)))


def test_a_wrong_type_inside_a_column_is_named_with_its_place_when_encoding() -> None:
    with pytest.raises(CodecError, match=r"TokensEmitted\.token_ids\[1\]: must be int, not str"):
        encode(replace(tokens(), token_ids=(1, "2")))  # type: ignore[arg-type]
    with pytest.raises(CodecError, match=r"TokensEmitted\.token_ids: must be tuple, not list"):
        encode(replace(tokens(), token_ids=[1, 2]))  # type: ignore[arg-type]


def test_an_unknown_word_of_an_enum_is_refused_with_the_known_ones() -> None:
    assert "StreamEnded.outcome: must be one of finished, refused" in refused([1, "StreamEnded", "r", "won", 0, None])


def test_text_that_is_not_unicode_is_refused_both_ways() -> None:
    with pytest.raises(CodecError):
        encode(StreamEnded(RequestId("\ud800"), Outcome.FINISHED))
    with pytest.raises(CodecError):
        decode(encode(StreamEnded(RequestId("abc"), Outcome.FINISHED)).replace(b"abc", b"\xff\xff\xff"))


def test_maps_extensions_and_timestamps_are_refused() -> None:
    for value in ({"a": 1}, msgpack.ExtType(5, b""), msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 0)):
        refused([1, "KVArrived", "r#1", value])


def test_deep_nesting_is_refused() -> None:
    for depth in (10, 600, 5000):
        with pytest.raises(CodecError):
            decode(b"\x91" * depth + b"\x00")


def test_an_array_header_that_lies_about_its_length_is_refused() -> None:
    with pytest.raises(CodecError):
        decode(b"\x93\x01\xa4Tick\xdd\xff\xff\xff\xff")


def test_messages_above_the_limit_are_refused_both_ways_and_the_limit_itself_is_not() -> None:
    event = replace(offered(), log=b"x" * codec.MAX_MESSAGE_BYTES)
    with pytest.raises(CodecError, match=r"Offered: .* the limit is 8388608"):
        encode(event)
    with pytest.raises(CodecError, match="the limit is"):
        decode(b"x" * (codec.MAX_MESSAGE_BYTES + 1))
    room = codec.MAX_MESSAGE_BYTES - len(encode(replace(event, log=b"x" * 70_000))) + 70_000
    assert len(encode(replace(event, log=b"x" * room))) == codec.MAX_MESSAGE_BYTES
    assert decode(encode(replace(event, log=b"x" * room))) == replace(event, log=b"x" * room)


def test_a_column_above_the_limit_is_refused() -> None:
    with pytest.raises(CodecError, match=r"TokensEmitted\.attempts: has 32769 items"):
        encode(tokens(codec.MAX_COLUMN + 1))


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(CodecError, match="Timing: is not an event"):
        encode(Timing())  # type: ignore[arg-type]


def test_an_envelope_names_the_message_that_is_wrong() -> None:
    with pytest.raises(CodecError, match="StreamEnded: has 0 fields"):
        decode_many(msgpack.packb([["a", [1, "Tick"]], ["b", [1, "StreamEnded"]]]))
    with pytest.raises(CodecError, match="needs an address"):
        decode_many(msgpack.packb([["a"]]))
    with pytest.raises(CodecError, match="needs an address"):
        decode_many(msgpack.packb([[1, [1, "Tick"]]]))


def test_a_class_that_cannot_travel_is_refused_when_its_coder_is_made() -> None:
    with pytest.raises(TypeError, match="cannot travel"):
        codec._coder(dict[str, int])
