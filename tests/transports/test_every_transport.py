"""What every transport does, on the same terms: inproc, shm within a process, shm between two."""

import gc
import threading
import time
from dataclasses import replace

import pytest

from core.errors import Corrupt, LayoutMismatch, LeaseExpired, PeerLost
from core.ids import LayoutId, NodeId
from core.kv import FetchTarget, KVLayout, SlabShape
from kv_transfer.faults import SWITCH, Block, faults_from_environment
from tests.transports.conftest import READER, Pair, handle_of, target
from tests.transports.lenders import LARGE, SMALL, content

BLOCK = SMALL.layout.bytes_per_block


def holds(pair: Pair, block: int, seed: int) -> bool:
    return bytes(pair.slab.block(block)) == content(seed, BLOCK)


def test_scattered_blocks_arrive_equal_and_nothing_else_changes(pair: Pair) -> None:
    pair.bind()
    assert pair.reader.fetch(pair.lend((5, 1, 7, 2)), target((0, 3, 2, 9))) == 4 * BLOCK
    assert [holds(pair, block, seed) for block, seed in ((0, 5), (3, 1), (2, 7), (9, 2))] == [True] * 4
    assert not any(any(pair.slab.block(block)) for block in set(range(32)) - {0, 3, 2, 9})


def test_neighbouring_blocks_arrive_equal(pair: Pair) -> None:
    pair.bind()
    pair.reader.fetch(pair.lend(tuple(range(3, 30))), target(tuple(range(1, 28))))
    assert all(holds(pair, block - 2, block) for block in range(3, 30))


def test_a_block_larger_than_a_piece_arrives_equal(pair: Pair) -> None:
    lender = pair.new_lender(NodeId("large@1"), shape=LARGE)
    reader, slab = pair.new_reader(LARGE)
    reader.bind(lender.binding())
    digests = (lender.write(2, 7, seed=1), lender.write(0, 8, seed=2))
    handle = replace(pair.lend((2, 0)), owner=NodeId("large@1"), generations=(7, 8), digests=digests)
    assert reader.fetch(handle, target((0, 1))) == 2 * LARGE.layout.bytes_per_block
    for block, seed in ((0, 1), (1, 2)):
        assert bytes(slab.block(block)) == content(seed, LARGE.layout.bytes_per_block)


def test_a_partly_filled_last_block_arrives_whole(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((4, 6))
    digest = pair.lender.write(6, 7, seed=99, num_bytes=BLOCK // 3)
    pair.reader.fetch(replace(handle, digests=(handle.digests[0], digest)), target((1, 2)))
    assert bytes(pair.slab.block(2)) == content(99, BLOCK // 3) + content(6, BLOCK)[BLOCK // 3 :]


def test_a_fetch_of_no_block_moves_nothing(pair: Pair) -> None:
    pair.bind()
    assert pair.reader.fetch(pair.lend(()), target(())) == 0


def test_our_generation_is_written_before_the_bytes(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.reader.fetch(handle, target((3,), generation=41))
    assert pair.slab.view.generations[3] == 41
    pair.lender.set_generation(5, 8)
    with pytest.raises(LeaseExpired):
        pair.reader.fetch(handle, target((3,), generation=42))
    assert pair.slab.view.generations[3] == 42  # whoever still reads block 3 of ours is warned, though no byte came


def test_a_block_that_was_reused_before_the_copy_is_an_expired_lease(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5, 6, 9))
    pair.lender.set_generation(6, 8)
    with pytest.raises(LeaseExpired, match="block 6 of lender@1 was reused before the copy"):
        pair.reader.fetch(handle, target((0, 1, 2)))


def test_a_block_that_is_reused_during_the_copy_is_an_expired_lease(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.while_copying("set_generation", block=5, generation=8)
    with pytest.raises(LeaseExpired, match="block 5 of lender@1 was reused during the copy"):
        pair.reader.fetch(handle, target((0,)))


def test_a_torn_copy_of_a_reused_block_is_an_expired_lease_and_not_corrupt(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))

    pair.while_copying("write", block=5, generation=8, seed=50)
    overtake = pair.hook.on_copy

    def rewrite(block: Block) -> None:
        overtake(block)
        block[BLOCK // 2 :] = 1

    pair.hook.on_copy = rewrite
    with pytest.raises(LeaseExpired, match="reused during the copy"):
        pair.reader.fetch(handle, target((0,)))


def test_a_block_rewritten_under_the_same_generation_is_corrupt(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.lender.write(5, 7, seed=50, num_bytes=1)
    with pytest.raises(Corrupt, match="block 5 of lender@1"):
        pair.reader.fetch(handle, target((0,)))


def test_a_byte_damaged_on_the_way_is_corrupt(pair: Pair) -> None:
    pair.bind()

    def damage(block: Block) -> None:
        block[BLOCK - 1] ^= 1

    pair.hook.on_copy = damage
    with pytest.raises(Corrupt):
        pair.reader.fetch(pair.lend((5, 6)), target((0, 1)))


def test_two_swapped_blocks_are_corrupt(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5, 6))
    with pytest.raises(Corrupt):
        pair.reader.fetch(replace(handle, block_ids=(6, 5)), target((0, 1)))


def test_a_peer_that_died_before_the_fetch_is_lost(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.lender.die()
    with pytest.raises(PeerLost, match="lender@1 is gone"):
        pair.reader.fetch(handle, target((0,)))
    assert not any(pair.slab.block(0))
    with pytest.raises(PeerLost):
        pair.reader.fetch(handle_of((), (), ()), target(()))


def test_a_peer_that_dies_during_the_fetch_is_lost(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5, 9))
    pair.hook.on_copy = lambda block: pair.lender.die()
    with pytest.raises(PeerLost, match="lender@1 is gone"):
        pair.reader.fetch(handle, target((0, 1)))


def test_what_was_fetched_outlives_the_peer(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.reader.fetch(handle, target((0,)))
    pair.lender.die()
    assert holds(pair, 0, 5)
    with pytest.raises(PeerLost):
        pair.reader.fetch(handle, target((1,)))
    pair.reader.unbind(handle.owner)
    assert holds(pair, 0, 5)


def test_a_peer_that_closed_in_good_order_is_lost_as_well(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.lender.close()
    with pytest.raises(PeerLost):
        pair.reader.fetch(handle, target((0,)))


def test_a_peer_that_is_gone_cannot_be_bound(pair: Pair) -> None:
    binding = pair.lender.binding()
    pair.lender.die()
    with pytest.raises(PeerLost):
        pair.reader.bind(binding)


def test_a_peer_that_was_never_bound_or_is_unbound_cannot_be_read(pair: Pair) -> None:
    handle = pair.lend((5,))
    pair.reader.unbind(handle.owner)
    with pytest.raises(PeerLost, match="lender@1 is not bound"):
        pair.reader.fetch(handle, target((0,)))
    pair.bind()
    pair.reader.unbind(handle.owner)
    with pytest.raises(PeerLost, match="lender@1 is not bound"):
        pair.reader.fetch(handle, target((0,)))


def test_a_fetch_that_runs_while_its_peer_is_unbound_ends_as_lost_and_then_unmaps(pair: Pair) -> None:
    before = pair.held()
    pair.bind()
    handle = pair.lend((5,))
    pair.hook.on_copy = lambda block: pair.reader.unbind(handle.owner)
    with pytest.raises(PeerLost, match="lender@1 was unbound"):
        pair.reader.fetch(handle, target((0,)))
    guard = time.monotonic() + 10  # a lender in this process has to notice that its reader left
    while pair.held() != before:
        gc.collect()
        assert time.monotonic() < guard


def test_binding_again_replaces_the_older_memory(pair: Pair) -> None:
    pair.bind()
    pair.lend((5,))
    pair.lender.close()
    pair.lender = pair.new_lender()
    pair.bind()
    handle = pair.lend((6,))
    pair.reader.fetch(handle, target((0,)))
    assert holds(pair, 0, 6)


def test_binding_again_while_a_fetch_runs_ends_that_fetch_and_not_the_next(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.hook.on_copy = lambda block: pair.bind()
    with pytest.raises(PeerLost, match="unbound"):
        pair.reader.fetch(handle, target((0,)))
    pair.hook.on_copy = lambda block: None
    pair.reader.fetch(handle, target((0,)))
    assert holds(pair, 0, 5)


def test_another_layout_is_refused_when_binding(pair: Pair) -> None:
    with pytest.raises(LayoutMismatch, match="layout-b"):
        pair.reader.bind(pair.new_lender(NodeId("b@1"), LayoutId("layout-b")).binding())


def test_another_geometry_is_refused_though_it_says_the_same_layout(pair: Pair) -> None:
    shape = SlabShape(KVLayout(2, 2, 4, 8, "float32"), 32)
    with pytest.raises(LayoutMismatch):
        pair.reader.bind(pair.new_lender(NodeId("b@1"), shape=shape).binding())


def test_a_pool_of_another_size_is_fine(pair: Pair) -> None:
    pair.lender = pair.new_lender(shape=replace(SMALL, num_blocks=600))
    pair.bind()
    pair.reader.fetch(pair.lend((599,)), target((0,)))
    assert holds(pair, 0, 599)


def test_a_binding_that_lies_about_the_pool_is_refused(pair: Pair) -> None:
    lie = replace(pair.lender.binding(), shape=replace(SMALL, num_blocks=33))
    with pytest.raises(LayoutMismatch):
        pair.reader.bind(lie)


def test_a_binding_of_another_transport_is_refused(pair: Pair) -> None:
    with pytest.raises(LayoutMismatch, match="is bound by pigeon"):
        pair.reader.bind(replace(pair.lender.binding(), transport="pigeon"))


def test_a_handle_of_another_layout_is_refused_before_any_byte_moves(pair: Pair) -> None:
    pair.bind()
    with pytest.raises(LayoutMismatch):
        pair.reader.fetch(replace(pair.lend((5,)), layout=LayoutId("layout-b")), target((0,)))
    assert not any(pair.slab.block(0))


@pytest.mark.parametrize("block", [-1, 32, 2**63])
def test_blocks_outside_either_pool_are_refused(pair: Pair, block: int) -> None:
    pair.bind()
    handle = pair.lend((5,))
    with pytest.raises(LayoutMismatch, match=f"source block {block} is not in a pool of 32"):
        pair.reader.fetch(replace(handle, block_ids=(block,)), target((0,)))
    with pytest.raises(LayoutMismatch, match=f"target block {block} is not in a pool of 32"):
        pair.reader.fetch(handle, target((block,)))


def test_a_target_block_named_twice_is_refused(pair: Pair) -> None:
    pair.bind()
    with pytest.raises(LayoutMismatch, match="target block is named twice"):
        pair.reader.fetch(pair.lend((5, 6)), target((0, 0)))


def test_columns_of_different_lengths_are_refused(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5, 6))
    for wrong, into in (
        (handle, target((0,))),
        (handle, FetchTarget((0, 1), (40,))),
        (replace(handle, digests=handle.digests[:1]), target((0, 1))),
        (replace(handle, generations=(7,)), target((0, 1))),
    ):
        with pytest.raises(LayoutMismatch, match="differ in length"):
            pair.reader.fetch(wrong, into)


def test_closing_twice_is_fine_and_afterwards_nothing_works(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.reader.close()
    pair.reader.close()
    with pytest.raises(PeerLost):
        pair.reader.fetch(handle, target((0,)))
    with pytest.raises(PeerLost):
        pair.bind()


def test_closing_waits_for_the_fetch_that_runs_and_ends_it(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    copied, closing = threading.Event(), threading.Thread(target=pair.reader.close)
    ended: list[str] = []

    def fetch() -> None:
        try:
            pair.reader.fetch(handle, target((0,)))
        except PeerLost:
            ended.append("lost")

    def meanwhile(block: object) -> None:
        copied.set()
        closing.start()
        while not closed_to_new_fetches(pair):
            pass

    pair.hook.on_copy = meanwhile
    fetching = threading.Thread(target=fetch)
    fetching.start()
    copied.wait(10)
    fetching.join(10)
    closing.join(10)
    assert ended == ["lost"]


def closed_to_new_fetches(pair: Pair) -> bool:
    try:
        pair.reader.fetch(handle_of((), (), ()), target(()))
    except PeerLost:
        return True
    return False


def test_several_threads_fetch_at_once(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend(tuple(range(8)))
    moved: list[int] = []

    def fetch(first: int) -> None:
        for _ in range(20):
            moved.append(pair.reader.fetch(handle, target(tuple(range(first, first + 8)))))

    threads = [threading.Thread(target=fetch, args=(first,)) for first in (0, 8, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert moved == [8 * BLOCK] * 60
    assert all(holds(pair, first + block, block) for first in (0, 8, 16) for block in range(8))


def test_a_lease_that_was_revoked_cannot_be_read_where_the_owner_takes_part(pair: Pair) -> None:
    pair.bind()
    handle = pair.lend((5,))
    pair.lender.revoke("r#1", READER)
    if not pair.is_served:
        assert pair.reader.fetch(handle, target((0,))) == BLOCK  # shared memory cannot be taken back: generations fence
        return
    with pytest.raises(LeaseExpired, match=f"not lent to {READER}"):
        pair.reader.fetch(handle, target((0,)))
    assert not any(pair.slab.block(0))
    pair.lender.lend("r#1", READER)
    assert pair.reader.fetch(handle, target((0,))) == BLOCK


def test_the_fault_before_the_comparison_makes_the_first_fetch_corrupt(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    reader, _ = pair.new_reader(faults=faults_from_environment(SMALL.layout, {SWITCH: "1"}))
    reader.bind(pair.lender.binding())
    handle = pair.lend((5,))
    with pytest.raises(Corrupt):
        reader.fetch(handle, target((0,)))
    assert reader.fetch(handle, target((0,))) == BLOCK
    assert "WILL DAMAGE KV ON PURPOSE" in caplog.text


def test_a_transport_reads_the_switch_when_it_is_made(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    reader, _ = pair.new_reader(from_environment=True)
    monkeypatch.delenv(SWITCH)
    reader.bind(pair.lender.binding())
    with pytest.raises(Corrupt):
        reader.fetch(pair.lend((5,)), target((0,)))


def test_the_fault_after_the_comparison_changes_one_byte_of_each_block_silently(pair: Pair) -> None:
    reader, slab = pair.new_reader(faults=faults_from_environment(SMALL.layout, {SWITCH: "2"}))
    reader.bind(pair.lender.binding())
    reader.fetch(pair.lend((5, 6)), target((0, 1)))
    for block, lent in ((0, 5), (1, 6)):
        differs = [a != b for a, b in zip(slab.block(block), content(lent, BLOCK), strict=True)]
        assert differs.index(True) == 4 * 4 * 4 + 3  # the exponent of the first number of the first V plane
        assert sum(differs) == 1
