"""What `nixl` adds to the common suite: what it believes of an owner, how reads are cut, pools in device memory."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from core.errors import ConfigError, LayoutMismatch, PeerLost
from core.ids import NodeId
from kv_transfer import nixl
from kv_transfer.copy_plan import Piece
from kv_transfer.door import Door
from kv_transfer.faults import NoFaults
from kv_transfer.pools import DevicePool, HostPool
from kv_transfer.slab import Slab
from kv_transfer.sum128 import as_digests, sum128
from kv_transfer.transport import Binding
from tests.transports.conftest import LENDER, READER, WITHOUT_NIXL, target
from tests.transports.conftest import handle_of as lent
from tests.transports.device_lenders import StandInSlab
from tests.transports.lenders import LAYOUT, SMALL, TOKEN, OwnerProcess, RemoteLender, content
from tests.transports.nixl_lenders import nixl_reader

BLOCK = SMALL.layout.bytes_per_block
BINDING = Binding(LENDER, LAYOUT, SMALL, "nixl", "tcp:127.0.0.1:1")
TOLD = BINDING.pack()


@pytest.fixture
def needs_nixl() -> None:
    if WITHOUT_NIXL:
        pytest.skip(WITHOUT_NIXL)


@pytest.fixture
def pool() -> Iterator[HostPool]:
    with Slab.anonymous(SMALL, "pool") as slab:
        yield HostPool(slab)


def test_without_nixl_the_transport_is_refused_with_what_to_install(
    pool: HostPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(ConfigError, match=r"transport: nixl: nixl is not installed.*penstock\[nixl\]"):
        nixl.NixlTransport(LENDER, LAYOUT, pool, TOKEN)


@pytest.mark.parametrize(
    ("hello", "error", "words"),
    [
        (b"\xc1", LayoutMismatch, "not a hello"),
        (msgpack.packb((TOLD, b"md", 1, None)), LayoutMismatch, "not a hello"),
        (msgpack.packb((TOLD, "md", 1, None, "xxh3_128")), LayoutMismatch, "not a hello"),
        (msgpack.packb((TOLD, b"md", "1", None, "xxh3_128")), LayoutMismatch, "not a hello"),
        (msgpack.packb((TOLD, b"md", 1, -1, "xxh3_128")), LayoutMismatch, "not a hello"),
        (msgpack.packb((b"x", b"md", 1, None, "xxh3_128")), LayoutMismatch, "not a binding"),
        (msgpack.packb((TOLD, b"md", 1, None, "sum128")), LayoutMismatch, "seals with sum128"),
        (
            msgpack.packb((replace(BINDING, node=NodeId("other@2")).pack(), b"md", 1, None, "xxh3_128")),
            PeerLost,
            "now belongs to other@2",
        ),
    ],
)
def test_an_owner_that_says_something_else_is_not_believed(
    hello: bytes, error: type[Exception], words: str, pool: HostPool
) -> None:
    with pytest.raises(error, match=words):
        nixl._place_in(hello, BINDING, pool)


def test_metadata_that_nixl_does_not_know_is_a_lost_peer(needs_nixl: None) -> None:
    reader, slab = nixl_reader(READER, LAYOUT, SMALL, NoFaults())
    server = Door(TOKEN)
    binding = replace(BINDING, address=server.open("127.0.0.1"))
    server.start(msgpack.packb((binding.pack(), b"md", 1, None, "xxh3_128")))
    with pytest.raises(PeerLost, match="lender@1: NIXL could not"):
        reader.bind(binding)
    reader.close()
    server.close()
    slab.close()


def test_a_large_fetch_is_cut_into_reads_of_about_the_limit() -> None:
    pieces = [Piece(10 * i, 20 * i, 10) for i in range(7)]
    assert list(nixl._parts(pieces, 25)) == [pieces[:3], pieces[3:6], pieces[6:]]
    assert list(nixl._parts((), 25)) == []


def test_a_pool_in_device_memory_does_what_one_in_host_memory_does() -> None:
    with StandInSlab(SMALL) as slab:
        device = DevicePool(slab)
        assert (device.address, device.device, device.shape) == (slab.at.pointer, 0, SMALL)
        for block in (3, 9):
            slab.write_block(block, content(block, BLOCK))
        device.write_generations((3, 9), (40, 1 << 63))
        assert (slab.generation(3), slab.generation(9)) == (40, 1 << 63)
        blocks = np.stack([np.frombuffer(content(block, BLOCK), np.uint8) for block in (3, 9)])
        assert device.digests((3, 9)) == as_digests(sum128(blocks))
        device.tell((9,), lambda block: np.copyto(block, 5))
        assert slab.read_block(9) == bytes([5]) * BLOCK
        assert slab.read_block(3) == content(3, BLOCK)


def test_an_owner_that_stands_still_is_lost_after_the_progress_time_out(needs_nixl: None) -> None:
    """It has stopped before the first connection, which needs it; later reads of host memory may not."""
    owner = OwnerProcess()
    lender = RemoteLender(owner, LENDER, LAYOUT, SMALL, "nixl")
    reader, slab = nixl_reader(READER, LAYOUT, SMALL, NoFaults(), progress_s=0.3)
    binding = lender.binding()
    stopping = threading.Event()
    link_made = nixl.knock

    def knock_and_stop(*arguments: object) -> object:
        made = link_made(*arguments)  # type: ignore[arg-type]
        os.kill(owner.pid, signal.SIGSTOP)
        stopping.set()
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nixl, "knock", knock_and_stop)
        start = time.monotonic()
        with pytest.raises(PeerLost, match="made no progress"):
            reader.bind(binding)
        assert stopping.is_set() and time.monotonic() - start >= 0.3
    os.kill(owner.pid, signal.SIGCONT)
    reader.bind(binding)
    digest = lender.write(5, 7, seed=5)
    assert reader.fetch(lent((5,), (7,), (digest,)), target((0,))) == BLOCK
    reader.close()
    slab.close()
    owner.close()
