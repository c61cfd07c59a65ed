"""The compiled copy: its digest is the package's, and without a compiler the reason is told."""

import logging
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Corrupt, LeaseExpired
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle, KVLayout, SlabShape
from kv_transfer.block_copy import BlockCopy
from kv_transfer.faults import NoFaults
from kv_transfer.native import library
from kv_transfer.native.library import MIN_BLOCK_BYTES, load
from kv_transfer.peers import Peer
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding

WITHOUT = load() is None


@pytest.mark.skipif(WITHOUT, reason="no C compiler")
@given(st.integers(MIN_BLOCK_BYTES, 5_000), st.integers(0, 2**32))
def test_the_digest_is_that_of_the_package_for_every_length(num_bytes: int, seed: int) -> None:
    native, block = load(), random.Random(seed).randbytes(num_bytes)
    assert native is not None
    assert native.digest(block) == xxhash.xxh3_128_digest(block)


@pytest.mark.skipif(WITHOUT, reason="no C compiler")
@pytest.mark.parametrize("num_bytes", [1024, 1025, 2048, 16_384, 16_385, 65_536, 1 << 20])
def test_the_digest_is_that_of_the_package_where_a_round_or_a_piece_ends(num_bytes: int) -> None:
    native, block = load(), random.Random(num_bytes).randbytes(num_bytes)
    assert native is not None
    assert native.digest(block) == xxhash.xxh3_128_digest(block)


@pytest.mark.parametrize(
    ("variable", "value", "reason"), [("PENSTOCK_NATIVE", "0", "is off"), ("CC", "no-such", "'no-such'")]
)
def test_without_a_library_the_reason_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    load.cache_clear()
    try:
        with caplog.at_level(logging.INFO, library.LOG.name):
            assert load() is None and load() is None
    finally:
        load.cache_clear()
    assert len(caplog.messages) == 1 and reason in caplog.messages[0]


# ── pools so large that blocks are written past the caches ───────────────────────────────────────────────────────────

LARGE_POOL_BYTES = 9 << 20


@contextmanager
def pools(layout: KVLayout) -> Iterator[tuple[Slab, Slab]]:
    """Theirs with random bytes and ours, both larger than what is kept in a cache."""
    shape = SlabShape(layout, LARGE_POOL_BYTES // layout.bytes_per_block)
    with Slab.anonymous(shape, "theirs") as theirs, Slab.anonymous(shape, "ours") as ours:
        chance = random.Random(layout.bytes_per_block)
        for block in range(8):
            theirs.block(block)[:] = chance.randbytes(layout.bytes_per_block)
            theirs.set_generation(block, 7)
        yield theirs, ours


def copy_of(theirs: Slab, ours: Slab, sources: tuple[int, ...], targets: tuple[int, ...]) -> BlockCopy:
    binding = Binding(NodeId("lender@1"), LayoutId("layout"), theirs.shape, "shm", "nowhere")
    digests = tuple(xxhash.xxh3_128_digest(theirs.block(source)) for source in sources)
    attempt, num_blocks = AttemptId("r#1"), len(sources)
    handle = KVHandle(attempt, binding.node, binding.layout, 0, sources, (7,) * num_blocks, digests)
    into = FetchTarget(targets, tuple(range(1, num_blocks + 1)))
    return BlockCopy(handle, into, Peer(binding, theirs.view, lambda: True, lambda: None), ours.view, NoFaults())


@pytest.mark.parametrize("head_dim", [31, 32, 33, 512, 513, 1000])
def test_blocks_of_a_large_pool_arrive_whole_and_touch_no_others(head_dim: int) -> None:
    with pools(KVLayout(1, 2, head_dim, 4, "float32")) as (theirs, ours):
        ours.view.blocks[:] = 0xAB
        sources, targets = (5, 0, 3, 6, 1), (9, 2, 7, 100, 4)
        assert copy_of(theirs, ours, sources, targets).run() == 5 * theirs.shape.layout.bytes_per_block
        for source, target in zip(sources, targets, strict=True):
            assert ours.block(target) == theirs.block(source)
        untouched = [block for block in range(theirs.shape.num_blocks) if block not in targets]
        assert (ours.view.blocks[untouched] == 0xAB).all()
        assert ours.view.generations[list(targets)].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("place", [0, 63, 64, 1023, 1024, 4095, 4096, 15_359, 15_360, 16_320, 16_383])
def test_no_flipped_bit_of_a_block_of_a_large_pool_is_missed(place: int) -> None:
    with pools(KVLayout(1, 2, 256, 4, "float32")) as (theirs, ours):
        copy = copy_of(theirs, ours, (1, 2, 3), (4, 5, 6))
        theirs.block(2)[place] ^= 0x10
        with pytest.raises(Corrupt, match="block 2 "):
            copy.run()


def test_a_block_of_a_large_pool_that_was_reused_is_not_believed() -> None:
    with pools(KVLayout(1, 2, 256, 4, "float32")) as (theirs, ours):
        copy = copy_of(theirs, ours, (1, 2, 3), (4, 5, 6))
        theirs.set_generation(3, 8)
        with pytest.raises(LeaseExpired, match=r"block 3 .* reused before the copy \(generation 8, lent as 7\)"):
            copy.run()


def test_a_writer_beside_the_copy_never_leaves_a_block_that_is_believed_and_wrong() -> None:
    outcomes = Counter[str]()
    with pools(KVLayout(1, 2, 2048, 4, "float32")) as (theirs, ours):
        for turn in range(60):
            lent, content = turn % 8, bytes(theirs.block(turn % 8))
            copy = copy_of(theirs, ours, (lent,), (9,))
            writer = threading.Thread(target=_overwrite, args=(theirs, lent))
            writer.start()
            try:
                copy.run()
                outcomes["believed"] += 1
                assert bytes(ours.block(9)) == content
            except (LeaseExpired, Corrupt) as error:
                outcomes[type(error).__name__] += 1
            writer.join()
            theirs.set_generation(lent, 7)
    assert outcomes.total() == 60


def _overwrite(slab: Slab, block: int) -> None:
    slab.set_generation(block, 8)
    slab.view.blocks[block] += 1
