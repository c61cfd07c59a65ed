"""The words of `core`: ids, packed tokens, KV geometry, block keys, mixes, ledgers, timers, errors."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import errors
from core.ids import AttemptId, NodeId, RequestId, attempt_id, node_name, number_of, request_of
from core.kv import KVHandle, KVLayout, SlabShape, block_keys, num_blocks
from core.lifecycle import BlockState
from core.mix import mix_of
from core.request import num_packed, pack_tokens, unpack_tokens
from core.stats import BlockCounts, Timing
from core.timers import Timers

LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, head_dim=16, block_size=8, dtype="float32")
token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=80)


@given(st.text(min_size=1), st.integers(0, 2**40))
def test_an_attempt_names_its_request_and_its_number_whatever_the_request_is_called(name: str, number: int) -> None:
    attempt = attempt_id(RequestId(name), number)
    assert (request_of(attempt), number_of(attempt)) == (name, number)


def test_a_node_keeps_its_name_over_its_incarnations() -> None:
    assert node_name(NodeId("decode-0@3f")) == node_name(NodeId("decode-0@91")) == "decode-0"


@given(token_ids)
def test_packed_tokens_come_back_as_they_were(ids: list[int]) -> None:
    packed = pack_tokens(ids)
    assert unpack_tokens(packed) == tuple(ids)
    assert num_packed(packed) == len(ids)
    assert len(packed) == 4 * len(ids)


def test_packed_tokens_are_little_endian() -> None:
    assert pack_tokens([1, 256]) == b"\1\0\0\0\0\1\0\0"


def test_bytes_that_are_no_whole_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        unpack_tokens(b"\0\0\0\0\0")


def test_a_block_holds_the_keys_and_values_of_all_layers_and_heads() -> None:
    assert LAYOUT.bytes_per_block == 2 * 4 * 2 * 16 * 4 * 8


def test_a_slab_is_a_page_aligned_header_and_then_one_range_a_block() -> None:
    shape = SlabShape(LAYOUT, num_blocks=513)
    assert shape.blocks_offset == 8192
    assert shape.block_offset(512) + LAYOUT.bytes_per_block == shape.total_bytes


@pytest.mark.parametrize(
    "other",
    [replace(LAYOUT, **{field.name: "float16" if field.name == "dtype" else 3}) for field in fields(KVLayout)],
    ids=[field.name for field in fields(KVLayout)],
)
def test_any_difference_in_geometry_is_another_layout(other: KVLayout) -> None:
    assert other.id("weights") != LAYOUT.id("weights")


def test_other_weights_are_another_layout() -> None:
    assert LAYOUT.id("these") == LAYOUT.id("these") != LAYOUT.id("those")


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_tokens_fit_the_blocks_that_are_counted_for_them_and_no_fewer(num_tokens: int, block_size: int) -> None:
    blocks = num_blocks(num_tokens, block_size)
    assert blocks * block_size >= num_tokens > (blocks - 1) * block_size


@given(token_ids, st.integers(1, 16))
def test_a_block_key_covers_everything_up_to_its_end(ids: list[int], block_size: int) -> None:
    keys = block_keys(pack_tokens(ids), block_size)
    assert len(keys) == len(ids) // block_size
    for i in range(len(keys)):
        assert block_keys(pack_tokens(ids[: (i + 1) * block_size]), block_size) == keys[: i + 1]


def test_a_change_changes_the_keys_from_its_block_on_and_none_before() -> None:
    before = block_keys(pack_tokens(range(32)), 8)
    after = block_keys(pack_tokens([99 if i == 12 else i for i in range(32)]), 8)
    assert before[:1] == after[:1]
    assert not set(before[1:]) & set(after[1:])


def test_tenants_share_no_key() -> None:
    packed = pack_tokens(range(32))
    assert not set(block_keys(packed, 8, "x")) & set(block_keys(packed, 8, "y"))


def test_part_of_a_handle_knows_where_it_begins() -> None:
    columns = ((4, 5, 6), (1, 1, 2), (b"a", b"b", b"c"))
    handle = KVHandle(AttemptId("r#0"), NodeId("p@1"), LAYOUT.id("w"), 10, *columns)
    part = handle.take((1, 2))
    assert (part.first_block, part.end_block, handle.end_block) == (11, 13, 13)
    assert (part.block_ids, part.generations, part.digests) == ((5, 6), (1, 2), (b"b", b"c"))


@pytest.mark.parametrize("role", ["prefill", "decode", "mixed", "closed"])
def test_a_mix_is_called_what_it_was_made_from(role: str) -> None:
    assert mix_of(role, 512, 8).role == role


def test_a_mix_of_an_unknown_role_is_an_error() -> None:
    with pytest.raises(KeyError):
        mix_of("colocated", 512, 8)


def test_the_parts_of_a_ledger_add_up() -> None:
    names = [field.name for field in fields(Timing) if field.name.endswith("_s")]
    assert len(names) == 7
    assert Timing(**{name: 2.0**i for i, name in enumerate(names)}).total_s == 2.0**7 - 1


def test_every_state_of_a_block_is_counted() -> None:
    assert {field.name for field in fields(BlockCounts)} - {"capacity"} == set(BlockState)


def test_the_default_timers_are_in_order() -> None:
    assert Timers().problems() == []


@pytest.mark.parametrize(
    ("timers", "names"),
    [
        (Timers(dead_s=2.5), ("suspect_s", "dead_s")),
        (Timers(lease_s=5.0), ("dead_s", "lease_s", "renewal_s")),
        (Timers(heartbeat_s=3.0), ("heartbeat_s", "suspect_s")),
        (Timers(renewal_s=2.5), ("renewal_s", "lease_s")),
    ],
)
def test_timers_out_of_order_are_named(timers: Timers, names: tuple[str, ...]) -> None:
    problems = " ".join(timers.problems())
    assert all(name in problems for name in names)


def all_errors(root: type[errors.PenstockError]) -> list[type[errors.PenstockError]]:
    return [root, *(error for child in root.__subclasses__() for error in all_errors(child))]


def test_every_error_says_whose_fault_it_is() -> None:
    assert {error.fault for error in all_errors(errors.PenstockError)} == {"caller", "load", "ours", "operator"}


def test_an_error_travels_as_a_value() -> None:
    refusal = errors.Overloaded("the queue holds 1,024 requests, its limit", retry_after_s=0.5)
    assert refusal.info == errors.ErrorInfo("overloaded", "the queue holds 1,024 requests, its limit", 0.5)


def test_a_configuration_error_lists_every_problem() -> None:
    assert str(errors.ConfigError(["a", "b"])) == "a\nb"
