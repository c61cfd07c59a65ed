"""Pools that are laid out differently, through the transports that bring one into the other."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from core.errors import Corrupt, LayoutMismatch, LeaseExpired
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle, KVLayout, SlabShape
from kv_transfer.digest import block_digest
from kv_transfer.faults import SWITCH, Block, Faults, NoFaults, faults_from_environment
from kv_transfer.gloo import GlooTransport
from kv_transfer.inproc import Exchange, InprocTransport
from kv_transfer.packing import HostBlocks
from kv_transfer.pair_transport import PairOptions
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.transport import Transport
from tests.transports.lenders import TOKEN, LocalLender

OWN = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_size=16, dtype="float32")
SMALLER, LARGER = replace(OWN, block_size=8), replace(OWN, block_size=32)
HALVES = replace(OWN, dtype="bfloat16")
RANKS = [replace(OWN, num_kv_heads=1, tp_rank=rank, tp_size=2) for rank in (0, 1)]
NUM_TOKENS = 64
Truth = npt.NDArray[np.float32]


class Nodes:
    """A reader of `OWN`, and lenders of any layout, over one kind of transport."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._exchange = Exchange()
        self._all: list[LocalLender] = []
        self.reader = self.add("reader@1", OWN)

    def add(self, node: str, layout: KVLayout, weights: str = "weights", faults: Faults | None = None) -> LocalLender:
        slab = Slab.anonymous(SlabShape(layout, 16), node)
        transport: Transport
        if self.kind == "gloo":
            return self._add_gloo(NodeId(node), layout.id(weights), slab, faults or NoFaults())
        if self.kind == "shm":
            transport = ShmTransport(NodeId(node), layout.id(weights), slab, TOKEN, faults or NoFaults())
        else:
            transport = InprocTransport(NodeId(node), layout.id(weights), slab, self._exchange, faults or NoFaults())
        self._all.append(LocalLender(transport, slab))
        return self._all[-1]

    def _add_gloo(self, node: NodeId, layout: LayoutId, slab: Slab, faults: Faults) -> LocalLender:
        options = PairOptions(faults, meanwhile=lambda: made.meanwhile())
        made = LocalLender(GlooTransport(node, layout, HostBlocks(slab), "127.0.0.1", TOKEN, options), slab)
        for reader in ("reader@1", "reader@2", "late@1"):
            made.lend("r#1", reader)
        self._all.append(made)
        return made

    def close(self) -> None:
        for each in self._all:
            each.close()
        self._all.clear()  # where a traceback held a view, a slab's memory goes with the last reference
        del self.reader


@pytest.fixture(params=["inproc", "shm", "gloo"])
def nodes(request: pytest.FixtureRequest, nothing_left: None) -> Iterator[Nodes]:
    made = Nodes(request.param)
    yield made
    made.close()


def truth() -> Truth:
    """[head, layer, k/v, token, dim]: numbers that bfloat16 holds exactly."""
    shape = (OWN.num_kv_heads, OWN.num_layers, 2, NUM_TOKENS, OWN.head_dim)
    return np.random.default_rng(7).integers(-128, 128, shape).astype(np.float32)


def lend(lender: LocalLender, block_ids: tuple[int, ...], first_block: int = 0) -> KVHandle:
    """Write what the truth has for these blocks of the table; the handle says so."""
    binding = lender.binding()
    layout, size = binding.shape.layout, binding.shape.layout.block_size
    heads = slice(layout.tp_rank * layout.num_kv_heads, (layout.tp_rank + 1) * layout.num_kv_heads)
    digests = []
    for place, block in enumerate(block_ids, first_block):
        numbers = np.ascontiguousarray(truth()[heads, :, :, place * size : (place + 1) * size])
        bits = numbers.view(np.uint32) >> 16 if layout.dtype == "bfloat16" else numbers.view(np.uint32)
        lender.slab.block(block)[:] = bits.astype(np.uint16 if layout.dtype == "bfloat16" else np.uint32).tobytes()
        lender.set_generation(block, 7)
        digests.append(block_digest(lender.slab.block(block)))
    return KVHandle(
        AttemptId("r#1"), binding.node, binding.layout, first_block, block_ids, (7,) * len(block_ids), tuple(digests)
    )


def target(*block_ids: int) -> FetchTarget:
    return FetchTarget(block_ids, (40,) * len(block_ids))


def held(reader: LocalLender, *block_ids: int) -> Truth:
    shape = (OWN.num_kv_heads, OWN.num_layers, 2, OWN.block_size, OWN.head_dim)
    return np.concatenate([np.frombuffer(reader.slab.block(b), np.float32).reshape(shape) for b in block_ids], axis=3)


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        (SMALLER, (5, 1, 7, 2, 9, 3, 0, 4), (0, 3, 2, 9)),
        (LARGER, (6, 1), (0, 3, 2, 9)),
        (HALVES, (6, 1, 3, 15), (0, 3, 2, 9)),
        (replace(SMALLER, dtype="bfloat16"), (5, 1, 7, 2, 9, 3, 0, 4), (0, 3, 2, 9)),
    ],
)
def test_another_block_size_or_type_arrives_as_the_same_numbers(
    nodes: Nodes, layout: KVLayout, theirs: tuple[int, ...], ours: tuple[int, ...]
) -> None:
    lender = nodes.add("lender@1", layout)
    nodes.reader.transport.bind(lender.binding())
    moved = nodes.reader.transport.fetch(lend(lender, theirs), target(*ours))
    assert moved == len(theirs) * layout.bytes_per_block
    assert np.array_equal(held(nodes.reader, *ours), truth())
    assert [int(nodes.reader.slab.view.generations[block]) for block in ours] == [40] * 4


def test_two_ranks_together_fill_the_blocks_of_one(nodes: Nodes) -> None:
    for rank, layout in enumerate(RANKS):
        lender = nodes.add(f"rank-{rank}@1", layout)
        nodes.reader.transport.bind(lender.binding())
        nodes.reader.transport.fetch(lend(lender, (5, 1, 7, 2)), target(0, 3, 2, 9))
    assert np.array_equal(held(nodes.reader, 0, 3, 2, 9), truth())


def test_a_run_in_the_middle_of_a_table_arrives_and_what_is_beyond_it_is_cleared(nodes: Nodes) -> None:
    lender = nodes.add("lender@1", SMALLER)
    nodes.reader.transport.bind(lender.binding())
    nodes.reader.slab.block(3)[:] = b"\xff" * OWN.bytes_per_block
    nodes.reader.transport.fetch(lend(lender, (5, 1, 7), first_block=2), target(0, 3))
    assert np.array_equal(held(nodes.reader, 0, 3)[:, :, :, :24], truth()[:, :, :, 16:40])
    assert not held(nodes.reader, 3)[:, :, :, 8:].any()


def test_what_is_not_proven_never_reaches_our_blocks(nodes: Nodes) -> None:
    lender = nodes.add("lender@1", SMALLER)
    nodes.reader.transport.bind(lender.binding())
    handle = lend(lender, (5, 1))
    lender.slab.block(1)[9] ^= 1
    with pytest.raises(Corrupt, match="block 1 of lender@1"):
        nodes.reader.transport.fetch(handle, target(0))
    assert not any(nodes.reader.slab.block(0))
    lender.set_generation(5, 8)
    with pytest.raises(LeaseExpired, match="block 5 of lender@1 was reused before the copy"):
        nodes.reader.transport.fetch(handle, target(0))


def test_the_switch_for_faults_works_here_as_well(nodes: Nodes) -> None:
    layout = replace(SMALLER, dtype="bfloat16")
    lender = nodes.add("lender@1", layout)
    for mode, is_noticed in (("1", True), ("2", False)):
        reader = nodes.add(f"reader@{mode}", OWN, faults=faults_from_environment(OWN, {SWITCH: mode}))
        reader.transport.bind(lender.binding())
        handle = lend(lender, (5, 1))
        if is_noticed:
            with pytest.raises(Corrupt):
                reader.transport.fetch(handle, target(0))
            continue
        reader.transport.fetch(handle, target(0))
        assert not np.array_equal(held(reader, 0), truth()[:, :, :, :16])


def test_a_lender_that_reuses_a_block_during_the_copy_is_noticed(nodes: Nodes) -> None:
    lender = nodes.add("lender@1", SMALLER)

    class Reuse(NoFaults):
        def after_copy(self, block: Block) -> None:
            lender.set_generation(1, 8)

    if nodes.kind == "gloo":  # there the owner copies, and the reader's blocks come later
        lender.while_read("set_generation", block=1, generation=8)
    reader = nodes.add("late@1", OWN, faults=NoFaults() if nodes.kind == "gloo" else Reuse())
    reader.transport.bind(lender.binding())
    with pytest.raises(LeaseExpired, match="block 1 of lender@1 was reused during the copy"):
        reader.transport.fetch(lend(lender, (1,)), target(0))


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (replace(OWN, num_layers=3), "num_layers"),
        (replace(OWN, head_dim=4), "head_dim"),
        (replace(OWN, num_kv_heads=3), "KV heads"),
        (replace(OWN, dtype="float64"), "float64 is not converted to float32"),
    ],
)
def test_what_cannot_be_mapped_is_refused_when_binding(nodes: Nodes, layout: KVLayout, words: str) -> None:
    with pytest.raises(LayoutMismatch, match=words):
        nodes.reader.transport.bind(nodes.add("lender@1", layout).binding())


def test_kv_of_other_weights_is_refused_in_any_geometry(nodes: Nodes) -> None:
    for layout in (OWN, SMALLER):
        with pytest.raises(LayoutMismatch, match="other weights"):
            nodes.reader.transport.bind(nodes.add("lender@1", layout, weights="others").binding())


def test_one_geometry_under_two_ids_of_the_same_weights_is_refused(nodes: Nodes) -> None:
    lender = nodes.add("lender@1", OWN)
    lie = replace(lender.binding(), layout=LayoutId(OWN.id("weights") + "0"))
    with pytest.raises(LayoutMismatch, match="one layout"):
        nodes.reader.transport.bind(lie)


def test_columns_that_do_not_cover_the_tokens_are_refused(nodes: Nodes) -> None:
    lender = nodes.add("lender@1", SMALLER)
    nodes.reader.transport.bind(lender.binding())
    handle = lend(lender, (5, 1, 7))
    for wrong, into, words in (
        (handle, target(0), "24 tokens need 2 blocks of 16, 1 are named"),
        (handle, FetchTarget((0, 1), (40,)), "differ in length"),
        (replace(handle, digests=handle.digests[:2]), target(0, 1), "differ in length"),
        (replace(handle, first_block=1), target(0, 1), "token 8 is within a block of ours"),
        (replace(handle, block_ids=(5, 5, 7)), target(0, 1), "a source block is named twice"),
        (replace(handle, block_ids=(5, 16, 7)), target(0, 1), "source block 16 is not in a pool of 16"),
        (handle, target(0, 16), "target block 16 is not in a pool of 16"),
        (replace(handle, layout=OWN.id("weights")), target(0, 1), "lent as KV layout"),
    ):
        with pytest.raises(LayoutMismatch, match=words):
            nodes.reader.transport.fetch(wrong, into)
    assert nodes.reader.transport.fetch(replace(handle.take(()), first_block=1), target()) == 0
