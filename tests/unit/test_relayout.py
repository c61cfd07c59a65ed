"""KV carried between two layouts, compared number by number with a reference that knows only the axes of a block."""

import itertools
import math
import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.kv import DTYPE_BYTES, KVLayout, SlabShape
from kv_transfer.copy_plan import CONVERTED, Side, plan_rest, plan_spans
from kv_transfer.relayout import carry, clear, from_bfloat16, to_bfloat16
from kv_transfer.slab import Slab

HEADS, LAYERS, DIM, NUM_BLOCKS = 4, 1, 2, 12
TP_SIZES, BLOCK_SIZES, DTYPES = (1, 2, 4), (8, 16, 32), tuple(sorted(CONVERTED))
LEFT_BY_AN_EARLIER_OWNER = 0xFF
"""As both bytes of a float16 or bfloat16, and as all four of a float32, this is NaN."""


def bits_of(number: float, dtype: str) -> bytes:
    """The reference's rounding, by another way than the product's: to nearest, ties to even, infinity beyond."""
    if dtype == "bfloat16":
        mantissa, exponent = math.frexp(number)
        return struct.pack("<f", math.ldexp(round(mantissa * 256), exponent - 8))[2:]
    try:
        return struct.pack("<f" if dtype == "float32" else "<e", number)
    except OverflowError:
        return struct.pack("<e", math.copysign(math.inf, number))


def number_of(bits: bytes, dtype: str) -> float:
    if dtype == "bfloat16":
        bits, dtype = b"\0\0" + bits, "float32"
    (number,) = struct.unpack("<f" if dtype == "float32" else "<e", bits)
    return float(number)


def offset_of(side: Side, token: int, head: int, plane: int, dim: int) -> int | None:
    """Where a number lies in a side's slab, by the words of KVLayout; None where this rank does not hold the head."""
    layout = side.shape.layout
    own_head = head - layout.tp_rank * layout.num_kv_heads
    if not 0 <= own_head < layout.num_kv_heads:
        return None
    block = side.block_ids[token // layout.block_size - side.first_block]
    place = ((own_head * 2 * LAYERS + plane) * layout.block_size + token % layout.block_size) * DIM + dim
    return side.shape.block_offset(block) + place * DTYPE_BYTES[layout.dtype]


def a_side(dice: random.Random, tokens: range, tp: tuple[int, int], block_size: int, dtype: str) -> Side:
    rank, size = tp
    first, end = tokens.start // block_size, -(-tokens.stop // block_size)
    layout = KVLayout(LAYERS, HEADS // size, DIM, block_size, dtype, rank, size)
    return Side(SlabShape(layout, NUM_BLOCKS), first, tuple(dice.sample(range(NUM_BLOCKS), end - first)))


def axes(tokens: range) -> itertools.product:  # type: ignore[type-arg]
    return itertools.product(tokens, range(HEADS), range(2 * LAYERS), range(DIM))


def expected(source: Side, lender: Slab, target: Side, reader: bytearray, tokens: range) -> bytearray:
    """The reader's memory as it must be afterwards, number by number."""
    ours, theirs = target.shape.layout, source.shape.layout
    width, wide = DTYPE_BYTES[ours.dtype], DTYPE_BYTES[theirs.dtype]
    end = -(-tokens.stop // ours.block_size) * ours.block_size
    for token, head, plane, dim in axes(range(tokens.start, end)):
        at = offset_of(target, token, head, plane, dim)
        rank = head // theirs.num_kv_heads == theirs.tp_rank
        if at is None or not rank:
            continue
        if token not in tokens:
            reader[at : at + width] = bytes(width)
            continue
        where = offset_of(source, token, head, plane, dim)
        assert where is not None
        bits = bytes(lender.buffer[where : where + wide])
        same = ours.dtype == theirs.dtype
        reader[at : at + width] = bits if same else bits_of(number_of(bits, theirs.dtype), ours.dtype)
    return reader


def fill(dice: random.Random, side: Side, slab: Slab, tokens: range) -> None:
    dtype = side.shape.layout.dtype
    for token, head, plane, dim in axes(tokens):
        at = offset_of(side, token, head, plane, dim)
        if at is not None:
            number = dice.choice((dice.uniform(-3, 3), dice.uniform(-6e4, 6e4), 1.00390625, 2049.0))
            slab.buffer[at : at + DTYPE_BYTES[dtype]] = bits_of(number, dtype)


@pytest.mark.parametrize("block_sizes", list(itertools.product(BLOCK_SIZES, BLOCK_SIZES)))
@pytest.mark.parametrize("tp_sizes", list(itertools.product(TP_SIZES, TP_SIZES)))
def test_every_pair_of_layouts_gets_every_number_to_its_place(
    tp_sizes: tuple[int, int], block_sizes: tuple[int, int]
) -> None:
    dice = random.Random(repr((tp_sizes, block_sizes)))
    for dtypes in itertools.product(DTYPES, DTYPES):
        wide = dice.randrange(max(tp_sizes))
        ranks = [wide if size == max(tp_sizes) else wide * size // max(tp_sizes) for size in tp_sizes]
        start = max(block_sizes) * dice.randrange(2)
        tokens = range(start, start + block_sizes[0] * dice.randint(1, 3))
        source, target = (
            a_side(dice, tokens, (rank, size), block_size, dtype)
            for rank, size, block_size, dtype in zip(ranks, tp_sizes, block_sizes, dtypes, strict=True)
        )
        lender, reader = Slab.in_process(source.shape), Slab.in_process(target.shape)
        reader.buffer[:] = bytes([LEFT_BY_AN_EARLIER_OWNER]) * len(reader.buffer)
        fill(dice, source, lender, tokens)
        truth = expected(source, lender, target, bytearray(reader.buffer), tokens)
        layouts = source.shape.layout, target.shape.layout
        carry(plan_spans(source, target, tokens), lender.view.blocks, layouts[0], reader.view.blocks, layouts[1])
        clear(plan_rest(layouts[0], target, tokens.stop), reader.view.blocks, layouts[1])
        assert bytes(reader.buffer) == bytes(truth), (dtypes, ranks, tokens)


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bfloat16_rounds_to_the_nearest_and_keeps_what_is_no_number(numbers: list[float]) -> None:
    made = from_bfloat16(to_bfloat16(np.array(numbers, np.float32)))
    for number, result in zip(numbers, made.tolist(), strict=True):
        if math.isnan(number):
            assert math.isnan(result)
        elif math.isinf(number) or math.isinf(result):
            assert result == math.copysign(math.inf, number) and abs(number) > 3.38e38
        else:
            assert abs(result - number) <= max(abs(number) * 2**-8, 2**-134)
            assert np.float32(result).view(np.uint32) & 0xFFFF == 0


def test_halves_go_to_the_even_neighbour() -> None:
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8], np.float32)
    assert from_bfloat16(to_bfloat16(ties)).tolist() == [1.0, 1 + 4 * 2**-8, -1.0]
