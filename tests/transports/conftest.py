import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle, SlabShape
from kv_transfer import door, nixl
from kv_transfer.faults import Block, Faults
from kv_transfer.gloo import GlooTransport
from kv_transfer.inproc import Exchange, InprocTransport
from kv_transfer.packing import HostBlocks
from kv_transfer.pair_transport import PairOptions
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.transport import Transport
from tests.leftovers import descriptors
from tests.transports.device_lenders import StandInSlab, ipc_lender, ipc_reader, staged_lender, staged_reader
from tests.transports.lenders import (
    LAYOUT,
    SMALL,
    TOKEN,
    Lender,
    OwnerProcess,
    RemoteLender,
    gloo_lender,
    inproc_lender,
    shm_lender,
)
from tests.transports.nixl_lenders import nixl_lender, nixl_reader

KINDS = (
    "inproc",
    "shm",
    "shm across processes",
    "cuda_ipc over a stand-in",
    "cuda_ipc over a stand-in, across processes",
    "nixl",
    "nixl across processes",
    "gloo",
    "gloo across processes",
    "gloo over a stand-in device",
)
LENDER = NodeId("lender@1")
READER = NodeId("reader@1")
WITHOUT_NIXL = nixl.can_run()
"""Asked here, because importing it leaves other descriptors open than there were."""


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

    @property
    def is_remote(self) -> bool:
        return self.kind.endswith("across processes")

    def held(self) -> tuple[int, int, int]:
        """As `held`, but for descriptors that the kind keeps: NIXL's connections stay for as long as its agent."""
        descriptors, threads, mappings = held()
        return 0 if self.kind.startswith("nixl") else descriptors, threads, mappings

    @property
    def is_cuda_ipc(self) -> bool:
        return self.kind.startswith("cuda_ipc")

    def new_lender(self, node: NodeId = LENDER, layout: LayoutId = LAYOUT, shape: SlabShape = SMALL) -> Lender:
        lender: Lender
        if self.kind == "inproc":
            lender = inproc_lender(self._exchange, node, layout, shape)
        elif self.kind == "shm":
            lender = shm_lender(node, layout, shape)
        elif self.is_remote:
            lender = RemoteLender(self._owner, node, layout, shape, self.kind.split()[0])
        elif self.kind == "nixl":
            lender = nixl_lender(node, layout, shape)
        elif self.kind == "gloo":
            lender = gloo_lender(node, layout, shape)
        elif self.kind.startswith("gloo"):
            lender = staged_lender(node, layout, shape)
        else:
            lender = ipc_lender(node, layout, shape)
        lender.lend("r#1", READER)
        self._lenders.append(lender)
        return lender

    def new_reader(
        self, shape: SlabShape = SMALL, faults: Faults | None = None, from_environment: bool = False
    ) -> tuple[Transport, Slab | StandInSlab]:
        faults = None if from_environment else faults or self.hook
        transport: Transport
        slab: Slab | StandInSlab
        if self.kind.startswith("nixl"):
            transport, slab = nixl_reader(READER, LAYOUT, shape, faults)
            self._closers += [transport.close, slab.close]
            return transport, slab
        if self.is_cuda_ipc:
            transport, slab = ipc_reader(READER, LAYOUT, shape, faults)
            self._closers += [transport.close, slab.close]
            return transport, slab
        if self.kind == "gloo over a stand-in device":
            transport, slab = staged_reader(READER, LAYOUT, shape, faults)
            self._closers += [transport.close, slab.close]
            return transport, slab
        slab = Slab.anonymous(shape, "reader")
        if self.kind == "inproc":
            transport = InprocTransport(READER, LAYOUT, slab, self._exchange, faults)
        elif self.is_served:
            transport = GlooTransport(READER, LAYOUT, HostBlocks(slab), "127.0.0.1", TOKEN, PairOptions(faults))
        else:
            transport = ShmTransport(READER, LAYOUT, slab, TOKEN, faults)
        self._closers += [transport.close, slab.close]
        return transport, slab

    @property
    def is_served(self) -> bool:
        """Whether the owner takes part in a copy."""
        return self.kind.startswith("gloo")

    def while_copying(self, deed: str, **arguments: object) -> None:
        """Have the lender do one of its deeds while the next block is copied."""
        if self.is_served:
            self.lender.while_read(deed, **arguments)
        else:
            self.hook.on_copy = lambda block: getattr(self.lender, deed)(**arguments)

    def bind(self) -> None:
        self.reader.bind(self.lender.binding())

    def lend(self, block_ids: tuple[int, ...], generation: int = 7) -> KVHandle:
        """Write blocks at the lender; block b holds `content(b)`."""
        digests = tuple(self.lender.write(block, generation, seed=block) for block in block_ids)
        return handle_of(block_ids, (generation,) * len(block_ids), digests)

    def close(self) -> None:
        for closer in self._closers:
            closer()
        if self.is_remote:
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


@pytest.fixture(scope="package", autouse=True)
def quick_collector() -> Iterator[None]:
    """What torch and others hold is not looked at again for each test: a collection takes milliseconds, not seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if "owner" in request.fixturenames:
        request.getfixturevalue("owner")  # first, for it stays
    gc.collect()  # what an earlier test left to the collector is not this one's, neither held nor given back
    had, had_open = held()[1:], descriptors()
    yield
    if held()[1:] != had or descriptors() - had_open:
        gc.collect()  # the traceback of an expected error may still hold a view
    assert held()[1:] == had
    assert not descriptors() - had_open  # by what they point at: gRPC ends connections of other modules when it likes


@pytest.fixture(params=KINDS)
def pair(
    request: pytest.FixtureRequest, owner: OwnerProcess, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pair]:
    if request.param.startswith("nixl") and WITHOUT_NIXL:
        pytest.skip(WITHOUT_NIXL)
    monkeypatch.setattr(door, "LEAVE_S", 0.05)  # a lender that dies within a fetch waits for that fetch
    made = Pair(request.param, owner)
    yield made
    made.close()
