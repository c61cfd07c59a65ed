"""The block pool: who holds what, what can be shared, what is evicted first."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.lifecycle import BlockState
from engine.blocks import BlockPool

KEYS = tuple(bytes([i]) * 16 for i in range(8))
TAIL = b"t" * 16
NUMBERS = st.integers(0, 7)


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


def kept(pool: BlockPool, num: int) -> tuple[int, ...]:
    """A prompt of `num` blocks that a decode row goes on filling; the last one is published as its tail."""
    blocks = pool.allocate(num, BlockState.FILLING)
    assert blocks is not None
    for block, key in zip(blocks[:-1], KEYS, strict=False):
        pool.seal(block, key, key)
    pool.adopt(blocks)
    pool.publish(blocks[-1], TAIL)
    return blocks


def test_the_tail_of_a_prompt_is_found_while_a_row_fills_its_block_up_and_afterwards() -> None:
    pool = BlockPool(4)
    blocks = kept(pool, 3)
    assert pool.hold(TAIL) == blocks[2:]
    pool.let_go(blocks[2:])
    assert pool.state(blocks[2]) is BlockState.IN_USE
    pool.free(blocks)
    assert pool.counts().cached == 3
    assert pool.hold(TAIL) == blocks[2:]
    assert pool.state(blocks[2]) is BlockState.SEALED
    pool.check()


def test_a_block_that_is_copied_from_outlives_its_owner_and_nobody_gets_it() -> None:
    pool = BlockPool(3)
    blocks = kept(pool, 3)
    assert pool.hold(TAIL) == blocks[2:]
    pool.free(blocks)
    assert pool.num_available == 2
    assert pool.allocate(3, BlockState.FILLING) is None
    taken = pool.allocate(2, BlockState.FILLING)
    assert taken is not None and blocks[2] not in taken
    pool.let_go(blocks[2:])
    assert pool.num_available == 1
    assert pool.num_held == 0
    pool.check()


def test_a_tail_is_evicted_before_its_prefix_also_when_it_was_copied_from_last() -> None:
    pool = BlockPool(4)
    blocks = kept(pool, 3)
    pool.free(blocks)
    shared, source = pool.share(KEYS[:2]), pool.hold(TAIL)
    copy = pool.allocate(1, BlockState.FILLING)
    assert copy is not None
    pool.let_go(source)
    pool.free((*shared, *copy))
    order = [pool.allocate(1, BlockState.FILLING) for _ in range(4)]
    assert order == [copy, source, blocks[1:2], blocks[:1]]


def test_what_is_unpublished_is_found_by_nobody_and_is_free_at_the_end() -> None:
    pool = BlockPool(3)
    blocks = kept(pool, 3)
    pool.unpublish(blocks)
    assert (pool.num_known(KEYS), pool.share(KEYS[:1]), pool.hold(TAIL)) == (0, (), ())
    pool.free(blocks)
    assert pool.counts().free == 3
    pool.check()


def test_a_flush_frees_what_nobody_has_and_nothing_else() -> None:
    pool = BlockPool(6)
    sealed(pool, 4)
    shared = pool.share(KEYS[:2])
    assert pool.flush() == 2
    assert (pool.num_known(KEYS), pool.counts().cached, pool.counts().free) == (2, 0, 4)
    pool.check()
    pool.free(shared)
    assert (pool.counts().cached, pool.flush(), pool.flush()) == (2, 2, 0)
    assert (pool.num_known(KEYS), pool.counts().free) == (0, 6)
    pool.check()


def test_looking_for_a_prefix_takes_nothing() -> None:
    pool = BlockPool(4)
    sealed(pool, 3)
    assert [pool.num_known(KEYS[:num]) for num in (0, 2, 5)] == [0, 2, 3]
    assert pool.num_known(KEYS[1:]) == 2
    assert pool.num_references() == 0
    assert pool.counts().cached == 3


def test_a_block_that_is_let_go_without_being_held_is_an_error() -> None:
    pool = BlockPool(1)
    blocks = sealed(pool, 1)
    with pytest.raises(AssertionError, match="was not held"):
        pool.let_go(blocks)


def test_a_row_that_leaves_has_its_blocks_sealed_as_they_stand_and_writes_them_again_if_it_stays() -> None:
    pool = BlockPool(3)
    (grown,) = pool.allocate(1, BlockState.IN_USE) or ()
    pool.reseal(grown, b"1" * 16)
    assert (pool.state(grown), pool.digests((grown,))) == (BlockState.SEALED, (b"1" * 16,))
    pool.adopt((grown,))
    assert pool.state(grown) is BlockState.IN_USE
    pool.reseal(grown, b"2" * 16)
    pool.free((grown,))
    assert pool.counts().free == 3, "nobody finds it by a key"
    pool.check()


def test_a_block_that_a_prompt_still_fills_is_no_row_s_to_seal() -> None:
    pool = BlockPool(1)
    (filling,) = pool.allocate(1, BlockState.FILLING) or ()
    with pytest.raises(AssertionError, match="filling"):
        pool.reseal(filling, b"1" * 16)


class AnyOrderOfUse(RuleBasedStateMachine):
    """The pool under any legal calls, beside a model: who has which block, and what was written into it.

    Owns: `tables`, the references of attempts; `holds`, those of steps that copy; `content`, the keys that a block of a
    generation was ever given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.tables: list[tuple[int, ...]] = []
        self.holds: list[tuple[int, ...]] = []
        self.content: dict[tuple[int, int], set[bytes]] = {}

    @rule(num=st.integers(1, 4), state=st.sampled_from((BlockState.FILLING, BlockState.RESERVED)))
    def allocate(self, num: int, state: BlockState) -> None:
        room, others = self.pool.num_available, {block for table in self.tables + self.holds for block in table}
        blocks = self.pool.allocate(num, state)
        assert (blocks is None) == (num > room)
        if blocks is not None:
            assert others.isdisjoint(blocks), "a block is handed out that somebody has"
            self.tables.append(blocks)

    @rule(number=NUMBERS, key=st.sampled_from(KEYS))
    def complete(self, number: int, key: bytes) -> None:
        """A step seals, or a fetch brings, the first incomplete block of a table."""
        for block in self.pick(self.tables, number):
            if self.pool.state(block) is BlockState.FILLING:
                self.pool.seal(block, key, key)
            elif self.pool.state(block) is BlockState.RESERVED:
                self.pool.receive((block,))
                self.pool.commit(block, key, key)
            else:
                continue
            self.note(block, key)
            break

    @rule(number=NUMBERS, key=st.sampled_from(KEYS))
    def keep(self, number: int, key: bytes) -> None:
        """The prompt is done, and a row of this node goes on filling its last block."""
        table = self.pick(self.tables, number)
        states = {self.pool.state(block) for block in table}
        if table and states <= {BlockState.FILLING, BlockState.SEALED, BlockState.IN_USE}:
            self.pool.adopt(table)
            self.pool.publish(table[-1], key)
            self.note(table[-1], key)

    @rule(first=st.integers(0, 7), num=st.integers(1, 3))
    def share(self, first: int, num: int) -> None:
        keys = KEYS[first : first + num]
        num_known = self.pool.num_known(keys)
        blocks = self.pool.share(keys)
        assert len(blocks) == num_known
        assert all(key in self.written(block) for key, block in zip(keys, blocks, strict=False))
        if blocks:
            self.tables.append(blocks)

    @rule(key=st.sampled_from(KEYS))
    def hold(self, key: bytes) -> None:
        source = self.pool.hold(key)
        assert all(key in self.written(block) for block in source)
        if source:
            self.holds.append(source)

    @rule(number=NUMBERS)
    def let_go(self, number: int) -> None:
        source = self.pick(self.holds, number)
        self.pool.let_go(source)
        if source:
            self.holds.remove(source)

    @rule(number=NUMBERS)
    def free(self, number: int) -> None:
        table = self.pick(self.tables, number)
        self.pool.free(table)
        if table:
            self.tables.remove(table)

    @rule(number=NUMBERS)
    def quarantine(self, number: int) -> None:
        self.pool.quarantine(self.pick(self.tables, number))

    @rule(number=NUMBERS)
    def unpublish(self, number: int) -> None:
        table = self.pick(self.tables, number)
        self.pool.unpublish(table)
        for block in table:
            self.content.pop((block, *self.pool.generations((block,))), None)

    @rule()
    def flush(self) -> None:
        room = self.pool.num_available
        self.pool.flush()
        assert (self.pool.num_available, self.pool.counts().cached) == (room, 0)

    @invariant()
    def the_books_add_up(self) -> None:
        self.pool.check()
        assert sum(map(len, self.tables + self.holds)) == self.pool.num_references()
        assert self.pool.num_held == len(self.holds)

    def teardown(self) -> None:
        """With everything given back, all blocks can be handed out again."""
        for source in self.holds:
            self.pool.let_go(source)
        for table in self.tables:
            self.pool.free(table)
        assert self.pool.num_available == self.pool.num_blocks
        self.pool.check()

    def pick(self, tables: list[tuple[int, ...]], number: int) -> tuple[int, ...]:
        return tables[number % len(tables)] if tables else ()

    def note(self, block: int, key: bytes) -> None:
        self.content.setdefault((block, *self.pool.generations((block,))), set()).add(key)

    def written(self, block: int) -> set[bytes]:
        return self.content.get((block, *self.pool.generations((block,))), set())


TestAnyOrderOfUse = AnyOrderOfUse.TestCase
TestAnyOrderOfUse.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
