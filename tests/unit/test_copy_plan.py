from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import LayoutMismatch
from core.kv import KVLayout, SlabShape
from kv_transfer.copy_plan import Piece, Side, plan_copy
from kv_transfer.slab import Slab

HEADS, LAYERS, DIM = 4, 2, 3
Logical = npt.NDArray[np.float32]


def layout(block_size: int = 4, tp_rank: int = 0, tp_size: int = 1) -> KVLayout:
    return KVLayout(LAYERS, HEADS // tp_size, DIM, block_size, "float32", tp_rank, tp_size)


def side(block_ids: tuple[int, ...], first_block: int = 0, **geometry: int) -> Side:
    return Side(SlabShape(layout(**geometry), 32), first_block, block_ids)


def places(where: Side, slab: Slab) -> list[tuple[int, Logical]]:
    """Each token position of a side with its vectors in the slab: [head, layer, k/v, dim], by the words of KVLayout."""
    kv = where.shape.layout
    axes = (kv.num_kv_heads, kv.num_layers, 2, kv.block_size, kv.head_dim)
    blocks = [np.frombuffer(slab.block(block), np.float32).reshape(axes) for block in where.block_ids]
    return [(t, blocks[i // kv.block_size][:, :, :, i % kv.block_size]) for i, t in enumerate(where.tokens)]


def truth(tokens: int) -> Logical:
    """A different number for every (token, head, layer, k/v, dim); never 0."""
    shape = (tokens, HEADS, LAYERS, 2, DIM)
    return np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def carried(source: Side, target: Side, tokens: range, limit: int = 16 << 20) -> dict[int, Logical]:
    """What lies at the target, by token, after the plan was carried out from a source full of the truth."""
    lender, reader = Slab.in_process(source.shape), Slab.in_process(target.shape)
    all_tokens = truth(max(source.tokens.stop, target.tokens.stop))
    held = source.shape.layout
    mine = slice(held.tp_rank * held.num_kv_heads, (held.tp_rank + 1) * held.num_kv_heads)
    for token, vectors in places(source, lender):
        vectors[:] = all_tokens[token, mine]
    for piece in plan_copy(source, target, tokens, limit):
        assert 0 < piece.num_bytes <= limit
        moved = lender.buffer[piece.source_offset : piece.source_offset + piece.num_bytes]
        reader.buffer[piece.target_offset : piece.target_offset + piece.num_bytes] = moved
    assert not any(reader.buffer[: reader.shape.blocks_offset])
    return {token: vectors.copy() for token, vectors in places(target, reader)}


def arrived(source: Side, target: Side, tokens: range, limit: int = 16 << 20) -> bool:
    """Exactly the common heads of exactly `tokens` are there."""
    ours, theirs = (
        range(s.tp_rank * s.num_kv_heads, (s.tp_rank + 1) * s.num_kv_heads)
        for s in (target.shape.layout, source.shape.layout)
    )
    expected = truth(max(source.tokens.stop, target.tokens.stop))
    return all(
        np.array_equal(vectors[i], expected[token, head] if token in tokens and head in theirs else 0 * vectors[i])
        for token, vectors in carried(source, target, tokens, limit).items()
        for i, head in enumerate(ours)
    )


def tables(num_blocks: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.permutations(range(32)).map(lambda ids: tuple(ids[:num_blocks]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_two_sides_that_map_get_exactly_the_common_heads_of_the_asked_tokens(data: st.DataObject) -> None:
    sizes = data.draw(st.sampled_from((1, 2, 3, 4, 8))), data.draw(st.sampled_from((1, 2, 3, 4, 8)))
    tokens = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 12))
    asked = range(tokens[0], tokens[0] + tokens[1])
    sides = []
    tp_sizes = data.draw(st.sampled_from(((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4), (4, 2))))
    ranks = {1: (0,), 2: (0, 1), 4: (0, 1, 2, 3)}
    ratio = max(tp_sizes) // min(tp_sizes)
    wide = data.draw(st.sampled_from(ranks[max(tp_sizes)]))
    for size, tp_size in zip(sizes, tp_sizes, strict=True):
        rank = wide if tp_size == max(tp_sizes) else wide // ratio
        first = asked.start // size
        num_blocks = -(-asked.stop // size) - first + data.draw(st.integers(0, 1))
        sides.append(side(data.draw(tables(num_blocks)), first, block_size=size, tp_rank=rank, tp_size=tp_size))
    assert arrived(sides[0], sides[1], asked, data.draw(st.sampled_from((16 << 20, 100, 7))))


@pytest.mark.parametrize("length", [0, 1, 11, 12, 13])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 3), (3, 4), (4, 8), (8, 4)])
def test_lengths_around_whole_blocks_arrive(length: int, sizes: tuple[int, int]) -> None:
    source, target = (side((9, 2, 5, 20, 1)[: -(-13 // size)], block_size=size) for size in sizes)
    assert arrived(source, target, range(length))


def test_neighbours_on_both_sides_are_one_piece() -> None:
    kv = layout()
    source, target = side((3, 4, 5, 9)), side((10, 11, 12, 13))
    assert plan_copy(source, target, range(16)) == (
        Piece(source.shape.block_offset(3), target.shape.block_offset(10), 3 * kv.bytes_per_block),
        Piece(source.shape.block_offset(9), target.shape.block_offset(13), kv.bytes_per_block),
    )


def test_the_slice_of_a_rank_is_one_range_of_each_block() -> None:
    pieces = plan_copy(side((3, 4)), side((0, 1), tp_rank=1, tp_size=2), range(8))
    assert [piece.num_bytes for piece in pieces] == [layout().bytes_per_block // 2] * 2


def test_pieces_end_at_the_limit() -> None:
    whole = 3 * layout().bytes_per_block
    pieces = plan_copy(side((3, 4, 5)), side((0, 1, 2)), range(12), whole // 2 + 1)
    assert [piece.num_bytes for piece in pieces] == [whole // 2 + 1, whole // 2 - 1]


@pytest.mark.parametrize("field", ["num_layers", "head_dim", "dtype"])
def test_sides_that_differ_in_meaning_are_refused_by_the_field(field: str) -> None:
    value = "bfloat16" if field == "dtype" else 7
    other = Side(SlabShape(replace(layout(), **{field: value}), 32), 0, (0,))  # type: ignore[arg-type]
    with pytest.raises(LayoutMismatch, match=field):
        plan_copy(side((0,)), other, range(4))


def test_ranks_without_a_common_head_are_refused() -> None:
    with pytest.raises(LayoutMismatch, match="share no head"):
        plan_copy(side((0,), tp_rank=0, tp_size=2), side((0,), tp_rank=1, tp_size=2), range(4))


def test_another_number_of_heads_is_refused() -> None:
    other = Side(SlabShape(replace(layout(), num_kv_heads=3), 32), 0, (0,))
    with pytest.raises(LayoutMismatch, match="KV heads"):
        plan_copy(side((0,)), other, range(4))


@pytest.mark.parametrize("tokens", [range(3, 5), range(4, 13), range(0, 4)])
def test_tokens_that_a_side_does_not_hold_are_refused(tokens: range) -> None:
    with pytest.raises(LayoutMismatch, match="the source covers tokens"):
        plan_copy(side((0, 1), first_block=1), side((0, 1, 2, 3)), tokens)


@pytest.mark.parametrize("block", [-1, 32])
def test_ids_outside_a_pool_are_refused(block: int) -> None:
    with pytest.raises(LayoutMismatch, match=f"target block {block} is not in a pool of 32"):
        plan_copy(side((0,)), side((block,)), range(4))
