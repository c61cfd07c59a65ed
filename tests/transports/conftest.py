import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle, SlabShape
from kv_transfer.faults import Block, Faults
from kv_transfer.inproc import Exchange, InprocTransport
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.transport import Transport
from tests.transports.lenders import LAYOUT, SMALL, TOKEN, Lender, OwnerProcess, RemoteLender, inproc_lender, shm_lender

KINDS = ("inproc", "shm", "shm across processes")
LENDER = NodeId("lender@1")
READER = NodeId("reader@1")


class Hook:
    """Calls back between a block's copy and the comparison, and after it; a stand-in for whatever happens meanwhile."""

    def __init__(self) -> None:
        self.on_copy: Callable[[Block], None] = lambda block: None
        self.on_check: Callable[[Block], None] = lambda block: None

    def after_copy(self, block: Block) -> None:
        self.on_copy(block)

    def after_check(self, block: Block) -> None:
        self.on_check(block)


class Pair:
    """A lender and a reader of one kind, bound on request."""

    def __init__(self, kind: str, owner: OwnerProcess) -> None:
        self.kind = kind
        self.hook = Hook()
        self._owner = owner
        self._exchange = Exchange()
        self._lenders: list[Lender] = []
        self._closers: list[Callable[[], None]] = []
        self.lender = self.new_lender()
        self.reader, self.slab = self.new_reader()

    def new_lender(self, node: NodeId = LENDER, layout: LayoutId = LAYOUT, shape: SlabShape = SMALL) -> Lender:
        lender: Lender
        if self.kind == "inproc":
            lender = inproc_lender(self._exchange, node, layout, shape)
        elif self.kind == "shm":
            lender = shm_lender(node, layout, shape)
        else:
            lender = RemoteLender(self._owner, node, layout, shape)
        self._lenders.append(lender)
        return lender

    def new_reader(
        self, shape: SlabShape = SMALL, faults: Faults | None = None, from_environment: bool = False
    ) -> tuple[Transport, Slab]:
        faults = None if from_environment else faults or self.hook
        slab = Slab.anonymous(shape, "reader")
        transport: Transport
        if self.kind == "inproc":
            transport = InprocTransport(READER, LAYOUT, slab, self._exchange, faults)
        else:
            transport = ShmTransport(READER, LAYOUT, slab, TOKEN, faults)
        self._closers += [transport.close, slab.close]
        return transport, slab

    def bind(self) -> None:
        self.reader.bind(self.lender.binding())

    def lend(self, block_ids: tuple[int, ...], generation: int = 7) -> KVHandle:
        """Write blocks at the lender; block b holds `content(b)`."""
        digests = tuple(self.lender.write(block, generation, seed=block) for block in block_ids)
        return handle_of(block_ids, (generation,) * len(block_ids), digests)

    def close(self) -> None:
        for closer in self._closers:
            closer()
        if self.kind == "shm across processes":
            self._owner.restart_if_dead()  # the lenders of a dead process are gone with it
        else:
            for lender in self._lenders:
                lender.close()


def handle_of(block_ids: tuple[int, ...], generations: tuple[int, ...], digests: tuple[bytes, ...]) -> KVHandle:
    return KVHandle(AttemptId("r#1"), LENDER, LAYOUT, 0, block_ids, generations, digests)


def target(block_ids: tuple[int, ...], generation: int = 40) -> FetchTarget:
    return FetchTarget(block_ids, (generation,) * len(block_ids))


def held() -> tuple[int, int, int]:
    """Descriptors, threads and mappings of ours."""
    mapped = sum("penstock-" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return len(os.listdir("/proc/self/fd")), threading.active_count(), mapped


@pytest.fixture(scope="module")
def owner() -> Iterator[OwnerProcess]:
    process = OwnerProcess()
    yield process
    process.close()


@pytest.fixture(autouse=True)
def nothing_left(owner: OwnerProcess) -> Iterator[None]:
    before = held()
    yield
    if held() != before:
        gc.collect()  # the traceback of an expected error may still hold a view
    assert held() == before


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, owner: OwnerProcess, nothing_left: None) -> Iterator[Pair]:
    made = Pair(request.param, owner)
    yield made
    made.close()
