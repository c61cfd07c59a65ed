"""Thousands of injected faults over each read path of shared memory: none may pass as right, and none may be missed."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from core.errors import Corrupt, LayoutMismatch, LeaseExpired
from core.ids import AttemptId
from core.kv import FetchTarget, KVHandle, KVLayout, SlabShape
from kv_transfer import block_copy
from kv_transfer.digest import block_digest
from kv_transfer.faults import Block
from kv_transfer.inproc import Exchange, InprocTransport
from kv_transfer.native import library
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.transport import Transport
from tests.transports.conftest import LENDER, READER, Hook
from tests.transports.lenders import TOKEN

SMALL = KVLayout(num_layers=2, num_kv_heads=2, head_dim=4, block_size=4, dtype="float32")
PIECES = KVLayout(num_layers=4, num_kv_heads=4, head_dim=32, block_size=10, dtype="float32")
"""A block of 40 KiB: the compiled copy takes it in ten pieces."""

NUM_BLOCKS = 12
NUM_FAULTS = 2_600
"""Of each of the eight worlds below, so more than 20,000 in all."""

GENERATION = 7
Bytes = npt.NDArray[np.uint8]


class World:
    """A lender full of known bytes, and a reader that may be of another layout."""

    def __init__(self, kind: str, layout: KVLayout, own: KVLayout) -> None:
        self.dice = random.Random(f"{kind} {layout} {own}")
        self.hook = Hook()
        self.lent = Slab.anonymous(SlabShape(layout, NUM_BLOCKS), "lender")
        self.held = Slab.anonymous(SlabShape(own, NUM_BLOCKS), "reader")
        ids = layout.id("w"), own.id("w")
        self.lender: Transport
        self.reader: Transport
        if kind == "shm":
            self.lender = ShmTransport(LENDER, ids[0], self.lent, TOKEN)
            self.reader = ShmTransport(READER, ids[1], self.held, TOKEN, self.hook)
        else:
            exchange = Exchange()
            self.lender = InprocTransport(LENDER, ids[0], self.lent, exchange)
            self.reader = InprocTransport(READER, ids[1], self.held, exchange, self.hook)
        self.reader.bind(self.lender.binding())
        numbers = np.random.default_rng(3).standard_normal((NUM_BLOCKS, layout.bytes_per_block // 4), np.float32)
        self.right: Bytes = numbers.view(np.uint8)
        self.digests = [block_digest(block) for block in self.right]
        self.restore()

    def restore(self) -> None:
        """As if nothing had happened."""
        self.hook.on_copy = lambda block: None
        self.lent.view.blocks[:] = self.right
        self.lent.view.generations[:] = GENERATION

    def handle(self) -> KVHandle:
        """Two to four blocks, scattered."""
        ids = tuple(self.dice.sample(range(NUM_BLOCKS), self.dice.choice((2, 4))))
        digests = tuple(self.digests[block] for block in ids)
        binding = self.lender.binding()
        return KVHandle(AttemptId("r#1"), LENDER, binding.layout, 0, ids, (GENERATION,) * len(ids), digests)

    def target(self, handle: KVHandle) -> FetchTarget:
        theirs, ours = self.lent.shape.layout.block_size, self.held.shape.layout.block_size
        num_blocks = len(handle.block_ids) * theirs // ours
        return FetchTarget(tuple(self.dice.sample(range(NUM_BLOCKS), num_blocks)), (40,) * num_blocks)

    def is_right(self, handle: KVHandle, into: FetchTarget) -> bool:
        """Whether our blocks hold, number by number, what was lent. Both layouts are of the same type."""
        parts = (self.right[list(handle.block_ids)], self.held.view.blocks[list(into.block_ids)])
        tokens = [self._by_token(part, slab) for part, slab in zip(parts, (self.lent, self.held), strict=True)]
        return np.array_equal(*tokens)

    def _by_token(self, blocks: Bytes, slab: Slab) -> npt.NDArray[np.uint32]:
        layout = slab.shape.layout
        axes = (len(blocks), layout.num_kv_heads, 2 * layout.num_layers, layout.block_size, layout.head_dim)
        return np.moveaxis(blocks.view(np.uint32).reshape(axes), 3, 1).reshape(len(blocks) * layout.block_size, -1)

    def on_one_copy(self, handle: KVHandle, act: Callable[[Block, int], None]) -> None:
        """Act once, when a block of the dice's choice has been copied and not yet compared."""
        wanted, seen = self.dice.randrange(len(handle.block_ids)), [0]

        def copied(block: Block) -> None:
            if seen[0] == wanted:
                act(block, handle.block_ids[wanted])
            seen[0] += 1

        self.hook.on_copy = copied

    def flip(self, block: Block) -> None:
        block[self.dice.randrange(len(block))] ^= 1 << self.dice.randrange(8)

    def tear(self, block: Block) -> None:
        """The rest of a block, from some byte on, is another owner's."""
        at = self.dice.randrange(len(block))
        block[at:] = ~block[at:]

    def close(self) -> None:
        for each in (self.reader, self.lender, self.held, self.lent):
            each.close()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to a fetch; returns the handle that the reader is then given."""

    name: str
    inject: Callable[[World, KVHandle], KVHandle]


def corrupted_at_the_owner(world: World, handle: KVHandle) -> KVHandle:
    world.flip(world.lent.view.blocks[world.dice.choice(handle.block_ids)])
    return handle


def corrupted_on_the_way(world: World, handle: KVHandle) -> KVHandle:
    world.on_one_copy(handle, lambda block, lent: world.flip(block))
    return handle


def two_ids_swapped(world: World, handle: KVHandle) -> KVHandle:
    first, second, *rest = handle.block_ids
    return replace(handle, block_ids=(second, first, *rest))


def two_blocks_swapped(world: World, handle: KVHandle) -> KVHandle:
    first, second = handle.block_ids[:2]
    world.lent.view.blocks[[first, second]] = world.lent.view.blocks[[second, first]]
    return handle


def stale_generation(world: World, handle: KVHandle) -> KVHandle:
    world.lent.set_generation(world.dice.choice(handle.block_ids), GENERATION + world.dice.randint(1, 9))
    return handle


def reused_during_the_copy(world: World, handle: KVHandle) -> KVHandle:
    def reuse(block: Block, lent: int) -> None:
        world.lent.set_generation(lent, GENERATION + 1)
        world.lent.view.blocks[lent] = 0

    world.on_one_copy(handle, reuse)
    return handle


def torn_write(world: World, handle: KVHandle) -> KVHandle:
    """The copy was overtaken by a writer who forgot the generation."""

    def tear(block: Block, lent: int) -> None:
        world.tear(block)
        world.lent.view.blocks[lent, -len(block) // 2 :] = 0

    world.on_one_copy(handle, tear)
    return handle


def torn_write_under_a_new_generation(world: World, handle: KVHandle) -> KVHandle:
    def tear(block: Block, lent: int) -> None:
        world.tear(block)
        world.lent.set_generation(lent, GENERATION + 1)

    world.on_one_copy(handle, tear)
    return handle


def another_digest(world: World, handle: KVHandle) -> KVHandle:
    wrong = bytearray(handle.digests[0])
    wrong[world.dice.randrange(16)] ^= 1 << world.dice.randrange(8)
    return replace(handle, digests=(bytes(wrong), *handle.digests[1:]))


FAULTS = [
    Fault(inject.__name__, inject)
    for inject in (
        corrupted_at_the_owner,
        corrupted_on_the_way,
        two_ids_swapped,
        two_blocks_swapped,
        stale_generation,
        reused_during_the_copy,
        torn_write,
        torn_write_under_a_new_generation,
        another_digest,
    )
]


def outcome(world: World, handle: KVHandle, asked: KVHandle) -> str:
    """How a fetch of `asked` ends, where the truth is what `handle` says."""
    into = world.target(handle)
    try:
        world.reader.fetch(asked, into)
    except (Corrupt, LeaseExpired) as error:
        return type(error).__name__
    return "right" if world.is_right(handle, into) else "MISSED"


@pytest.fixture(params=["compiled", "numpy"])
def copy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of the two copies the test takes."""
    if request.param == "numpy":
        monkeypatch.setattr(block_copy, "load", lambda: None)
    elif library.load() is None:
        pytest.skip("no C compiler")


@pytest.fixture(params=["inproc", "shm"])
def make(request: pytest.FixtureRequest, nothing_left: None) -> Iterator[Callable[[KVLayout, KVLayout], World]]:
    made: list[World] = []

    def world(layout: KVLayout, own: KVLayout) -> World:
        made.append(World(request.param, layout, own))
        return made[-1]

    yield world
    while made:
        made.pop().close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "own"), [(PIECES, PIECES), (SMALL, replace(SMALL, block_size=8))], ids=["in place", "laid out anew"]
)
def test_no_injected_fault_is_missed(
    make: Callable[[KVLayout, KVLayout], World], copy: None, layout: KVLayout, own: KVLayout
) -> None:
    world = make(layout, own)
    seen: Counter[tuple[str, str]] = Counter()
    for number in range(NUM_FAULTS):
        fault = FAULTS[number % len(FAULTS)]
        handle = world.handle()
        seen[fault.name, outcome(world, handle, fault.inject(world, handle))] += 1
        world.restore()
        if number % 20 == 0:  # and without a fault all is well again
            handle = world.handle()
            assert outcome(world, handle, handle) == "right"
    assert seen.total() == NUM_FAULTS
    assert not [key for key in seen if key[1] not in ("Corrupt", "LeaseExpired")], seen
    expired = {"stale_generation", "reused_during_the_copy", "torn_write_under_a_new_generation"}
    for fault in FAULTS:
        assert seen[fault.name, "LeaseExpired" if fault.name in expired else "Corrupt"] >= NUM_FAULTS // 10, seen


@pytest.mark.slow
def test_a_writer_that_runs_all_the_time_never_gets_its_bytes_into_a_fetch_that_succeeds(
    make: Callable[[KVLayout, KVLayout], World], copy: None
) -> None:
    """Nobody takes turns here: the owner reuses blocks while the reader copies them, for real."""
    world = make(PIECES, PIECES)
    stop = threading.Event()

    def write() -> None:
        dice = random.Random(1)
        while not stop.is_set():
            block = dice.randrange(NUM_BLOCKS)
            world.lent.set_generation(block, GENERATION + 1)
            world.lent.view.blocks[block, ::64] ^= 0xFF
            world.lent.view.blocks[block] = world.right[block]
            world.lent.set_generation(block, GENERATION)  # the very same bytes, lent again under the same name

    writer = threading.Thread(target=write)
    writer.start()
    seen: Counter[str] = Counter()
    try:
        for _ in range(2_000):
            handle = world.handle()
            seen[outcome(world, handle, handle)] += 1
    finally:
        stop.set()
        writer.join()
    assert set(seen) <= {"right", "Corrupt", "LeaseExpired"}, seen


def test_a_generation_that_is_no_number_of_64_bits_is_refused(
    make: Callable[[KVLayout, KVLayout], World], copy: None
) -> None:
    world = make(SMALL, SMALL)
    handle = replace(world.handle(), block_ids=(0, 1), digests=(world.digests[0], world.digests[1]))
    with pytest.raises((LayoutMismatch, LeaseExpired)):
        world.reader.fetch(replace(handle, generations=(GENERATION, 2**64)), FetchTarget((0, 1), (1, 1)))


def test_a_digest_of_another_length_is_corrupt(make: Callable[[KVLayout, KVLayout], World], copy: None) -> None:
    world = make(SMALL, SMALL)
    handle = replace(world.handle(), block_ids=(0,), generations=(GENERATION,), digests=(world.digests[0][:-1],))
    with pytest.raises(Corrupt):
        world.reader.fetch(handle, FetchTarget((0,), (1,)))


def test_what_a_hook_raises_comes_out_of_the_fetch(make: Callable[[KVLayout, KVLayout], World], copy: None) -> None:
    world = make(SMALL, SMALL)

    def fail(block: Block) -> None:
        raise KeyError("from a hook")

    world.hook.on_copy = fail
    handle = world.handle()
    with pytest.raises(KeyError, match="from a hook"):
        outcome(world, handle, handle)
