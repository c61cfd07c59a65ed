"""A thousand faults over gloo, of every kind that a two-sided transport can meet: none may pass unnoticed."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from core.errors import Corrupt, LeaseExpired, PeerLost, TransferError
from core.kv import KVHandle
from kv_transfer.faults import Block
from kv_transfer.gloo import GlooTransport
from kv_transfer.packing import HostBlocks
from kv_transfer.pair_transport import PairOptions
from kv_transfer.slab import Slab
from tests.transports.conftest import LENDER, READER, Hook, handle_of, target
from tests.transports.lenders import LAYOUT, SMALL, TOKEN, LocalLender, content, gloo_lender

pytestmark = pytest.mark.slow

BLOCK = SMALL.layout.bytes_per_block
NUM_FAULTS = 1000


class World:
    """A lender and a reader, bound, and the dice."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.hook = Hook()
        self.lender: LocalLender = gloo_lender(LENDER, LAYOUT, SMALL)
        self.slab = Slab.anonymous(SMALL, "reader")
        options = PairOptions(self.hook)
        self.reader = GlooTransport(READER, LAYOUT, HostBlocks(self.slab), "127.0.0.1", TOKEN, options)
        self.reader.bind(self.lender.binding())
        self.blocks: tuple[int, ...] = ()

    def lend(self) -> KVHandle:
        self.hook.on_copy = lambda block: None
        self.lender.lend("r#1", READER)
        self.blocks = tuple(self.dice.sample(range(32), self.dice.randint(2, 8)))
        digests = tuple(self.lender.write(block, 7, seed=block) for block in self.blocks)
        return handle_of(self.blocks, (7,) * len(digests), digests)

    def one(self) -> int:
        return self.dice.choice(self.blocks)

    def close(self) -> None:
        self.reader.close()
        self.slab.close()
        self.lender.close()


def corrupted_at_the_owner(world: World, handle: KVHandle) -> KVHandle:
    world.lender.slab.block(world.one())[world.dice.randrange(BLOCK)] ^= 1 << world.dice.randrange(8)
    return handle


def corrupted_on_the_way(world: World, handle: KVHandle) -> KVHandle:
    left = [world.dice.randrange(len(world.blocks))]

    def damage(block: Block) -> None:
        if left[0] == 0:
            block[world.dice.randrange(BLOCK)] ^= 1 << world.dice.randrange(8)
        left[0] -= 1

    world.hook.on_copy = damage
    return handle


def two_blocks_swapped(world: World, handle: KVHandle) -> KVHandle:
    first, second, *rest = handle.block_ids
    return replace(handle, block_ids=(second, first, *rest))


def stale_before(world: World, handle: KVHandle) -> KVHandle:
    world.lender.set_generation(world.one(), 8)
    return handle


def reused_while_it_is_read(world: World, handle: KVHandle) -> KVHandle:
    world.lender.while_read("write", block=world.one(), generation=8, seed=99)
    return handle


def another_digest(world: World, handle: KVHandle) -> KVHandle:
    return replace(handle, digests=(*handle.digests[:-1], bytes(16)))


def revoked(world: World, handle: KVHandle) -> KVHandle:
    world.lender.revoke("r#1", READER)
    return handle


def unbound_in_the_middle(world: World, handle: KVHandle) -> KVHandle:
    def unbind(block: Block) -> None:
        world.hook.on_copy = lambda block: None
        world.reader.unbind(LENDER)
        world.reader.bind(world.lender.binding())

    world.hook.on_copy = unbind
    return handle


Fault = Callable[[World, KVHandle], KVHandle]
FAULTS: dict[Fault, type[TransferError]] = {
    corrupted_at_the_owner: Corrupt,
    corrupted_on_the_way: Corrupt,
    two_blocks_swapped: Corrupt,
    stale_before: LeaseExpired,
    reused_while_it_is_read: LeaseExpired,
    another_digest: Corrupt,
    revoked: LeaseExpired,
    unbound_in_the_middle: PeerLost,
}


@pytest.fixture
def world(nothing_left: None) -> Iterator[World]:
    made = World(seed=20)
    yield made
    made.close()


def test_no_injected_fault_is_missed_and_the_next_fetch_is_right(world: World) -> None:
    hits: Counter[str] = Counter()
    for _ in range(NUM_FAULTS):
        fault = world.dice.choice(list(FAULTS))
        asked = fault(world, world.lend())
        with pytest.raises(FAULTS[fault]):
            world.reader.fetch(asked, target(tuple(range(len(world.blocks)))))
        hits[fault.__name__] += 1
        handle = world.lend()
        assert world.reader.fetch(handle, target(tuple(range(len(world.blocks))))) == len(world.blocks) * BLOCK
        for place, block in enumerate(world.blocks):
            assert bytes(world.slab.block(place)) == content(block, BLOCK)
    assert len(hits) == len(FAULTS) and sum(hits.values()) == NUM_FAULTS
