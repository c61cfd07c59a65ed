"""The block pool: who holds what, what can be shared, what is evicted first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.lifecycle import BlockState
from engine.blocks import BlockPool

KEYS = tuple(bytes([i]) * 16 for i in range(8))


def sealed(pool: BlockPool, num: int) -> tuple[int, ...]:
    """A prefix of `num` blocks, computed and given back."""
    blocks = pool.allocate(num, BlockState.FILLING)
    assert blocks is not None
    for block, key in zip(blocks, KEYS, strict=False):
        pool.seal(block, key, key)
    pool.free(blocks)
    return blocks


def test_a_prefix_loses_its_end_before_its_beginning() -> None:
    pool = BlockPool(4)
    blocks = sealed(pool, 4)
    assert pool.allocate(1, BlockState.FILLING) == (blocks[3],)
    assert pool.share(KEYS[:4]) == blocks[:3]
    pool.check()


def test_all_or_nothing_is_handed_out() -> None:
    pool = BlockPool(4)
    assert pool.allocate(5, BlockState.FILLING) is None
    assert pool.counts().free == 4
    assert len(pool.allocate(4, BlockState.RESERVED) or ()) == 4
    assert pool.allocate(1, BlockState.FILLING) is None
    pool.check()


def test_every_allocation_is_a_new_generation() -> None:
    pool = BlockPool(1)
    for generation in (1, 2, 3):
        blocks = pool.allocate(1, BlockState.IN_USE)
        assert blocks is not None and pool.generations(blocks) == (generation,)
        pool.free(blocks)


def test_what_a_step_may_still_write_is_neither_shared_nor_handed_out() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(2, BlockState.FILLING)
    assert blocks is not None
    pool.seal(blocks[0], KEYS[0], KEYS[0])
    pool.quarantine(blocks)
    assert pool.share(KEYS[:1]) == ()
    assert pool.allocate(1, BlockState.FILLING) is None
    pool.free(blocks)
    assert (pool.counts().cached, pool.counts().free) == (1, 1)
    pool.check()


def test_a_block_given_back_twice_is_an_error() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1, BlockState.IN_USE)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(AssertionError, match="without an owner"):
        pool.free(blocks)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), max_size=60))
def test_any_order_of_use_keeps_the_books(moves: list[tuple[int, int]]) -> None:
    pool, held = BlockPool(6), list[tuple[int, ...]]()
    for kind, number in moves:
        if kind == 0 and (blocks := pool.allocate(number % 4, BlockState.FILLING)):
            for block in blocks[: number % 3]:
                pool.seal(block, KEYS[number], KEYS[number])
            held.append(blocks)
        elif kind == 1 and (shared := pool.share(KEYS[number : number + 1])):
            held.append(shared)
        elif kind == 2 and held:
            pool.free(held.pop(number % len(held)))
        elif kind == 3 and held:
            pool.quarantine(held[number % len(held)])
        elif kind == 4 and (blocks := pool.allocate(1, BlockState.RESERVED)):
            pool.receive(blocks)
            pool.commit(blocks[0], KEYS[number], KEYS[number])
            held.append(blocks)
        pool.check()
        assert sum(map(len, held)) == pool.num_references()
