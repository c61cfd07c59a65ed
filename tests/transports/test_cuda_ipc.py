"""What `cuda_ipc` adds to the common suite: mappings given back in time, stalls, refusals. Over the stand-in device."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgpack
import pytest

from core.errors import ConfigError, Corrupt, LayoutMismatch, PeerLost
from core.ids import NodeId
from core.kv import KVHandle, KVLayout, SlabShape
from kv_transfer import cuda_ipc, door
from kv_transfer.cuda_ipc import CudaIpcTransport, IpcOptions
from kv_transfer.door import Door
from kv_transfer.faults import NoFaults
from kv_transfer.knock import is_open, knock
from tests.transports.conftest import LENDER, READER, handle_of, target
from tests.transports.device_lenders import DeviceLender, StandInSlab, ipc_lender
from tests.transports.lenders import LAYOUT, SMALL, TOKEN, content

BLOCK = SMALL.layout.bytes_per_block


def until(is_true: Callable[[], bool]) -> None:
    guard = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < guard
        time.sleep(0.001)


class Reader:
    """A reader with no faults: the path that is taken where nothing is tested."""

    def __init__(self, progress_s: float = 20) -> None:
        self.slab = StandInSlab(SMALL)
        self.device = self.slab.stand_in
        options = IpcOptions(progress_s, NoFaults())
        self.transport = CudaIpcTransport(READER, LAYOUT, self.slab, TOKEN, options)

    @property
    def num_mapped(self) -> int:
        return len(self.device.ranges) - 1  # its own slab

    def close(self) -> None:
        self.transport.close()
        self.slab.close()


@pytest.fixture
def lender() -> Iterator[DeviceLender]:
    made = ipc_lender(LENDER, LAYOUT, SMALL)
    yield made
    made.device_slab.stand_in.is_held = False
    made.close()


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.device.is_held, made.device.fails = False, ""
    made.close()


def lent(lender: DeviceLender, *blocks: int) -> KVHandle:
    digests = tuple(lender.write(block, 7, seed=block) for block in blocks)
    return handle_of(blocks, (7,) * len(blocks), digests)


def test_a_fetch_without_faults_is_one_pass_and_proves_the_bytes(lender: DeviceLender, reader: Reader) -> None:
    reader.transport.bind(lender.binding())
    handle = lent(lender, 5, 9)
    assert reader.transport.fetch(handle, target((0, 3))) == 2 * BLOCK
    assert reader.slab.read_block(3) == content(9, BLOCK)
    assert reader.slab.generation(3) == 40
    lender.device_slab.write_block(9, b"x")
    with pytest.raises(Corrupt):
        reader.transport.fetch(handle, target((0, 3)))


def test_a_digest_that_the_device_computes_is_the_one_that_seals(lender: DeviceLender) -> None:
    digests = lent(lender, 5, 9).digests
    assert lender.device_slab.digests((9, 5)) == (digests[1], digests[0])


def test_memory_of_an_owner_that_closes_is_unmapped_without_a_fetch(lender: DeviceLender, reader: Reader) -> None:
    reader.transport.bind(lender.binding())
    assert reader.num_mapped == 1
    lender.transport.close()
    until(lambda: reader.num_mapped == 0)
    with pytest.raises(PeerLost, match="lender@1 is gone"):
        reader.transport.fetch(lent(lender, 5), target((0,)))


def test_memory_is_unmapped_when_its_peer_is_unbound_and_when_it_is_bound_again(
    lender: DeviceLender, reader: Reader
) -> None:
    for _ in range(3):
        reader.transport.bind(lender.binding())
        assert reader.num_mapped == 1
    reader.transport.unbind(LENDER)
    assert reader.num_mapped == 0


def test_an_owner_closes_only_after_a_fetch_that_runs_has_let_go(lender: DeviceLender, reader: Reader) -> None:
    reader.transport.bind(lender.binding())
    handle = lent(lender, 5)
    reader.device.is_held = True
    ended: list[str] = []

    def fetch() -> None:
        try:
            reader.transport.fetch(handle, target((0,)))
        except PeerLost as error:
            ended.append(error.message)

    fetching, closing = threading.Thread(target=fetch), threading.Thread(target=lender.transport.close)
    fetching.start()
    until(lambda: reader.device.num_streams == 2)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive() and reader.num_mapped == 1
    reader.device.is_held = False
    fetching.join()
    closing.join()
    assert reader.num_mapped == 0
    assert ended == ["lender@1 is gone: its cuda_ipc link is closed"]


def test_an_owner_waits_only_so_long_for_a_reader_that_does_not_let_go(
    lender: DeviceLender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LEAVE_S", 0.1)
    link, _ = knock(LENDER, lender.binding().address, TOKEN, READER)
    lender.transport.close()
    assert not is_open(link)
    link.close()


def test_a_copy_that_takes_too_long_keeps_its_targets_until_it_ends_and_refuses_others(lender: DeviceLender) -> None:
    reader = Reader(progress_s=0.05)
    reader.transport.bind(lender.binding())
    handle, ended = lent(lender, 5), []
    reader.device.is_held = True

    def fetch() -> None:
        with pytest.raises(PeerLost, match="did not end in time"):
            reader.transport.fetch(handle, target((0,)))
        ended.append(True)

    fetching = threading.Thread(target=fetch)
    fetching.start()
    until(lambda: refuses(reader, handle))
    assert not ended
    reader.device.is_held = False
    fetching.join()
    assert ended
    assert reader.transport.fetch(handle, target((0,))) == BLOCK
    reader.close()


def refuses(reader: Reader, handle: KVHandle) -> bool:
    try:
        reader.transport._stalled.check()
    except PeerLost:
        with pytest.raises(PeerLost, match="has not finished a copy"):
            reader.transport.fetch(handle, target((1,)))
        return True
    return False


def test_closing_gives_up_a_copy_that_never_ends(lender: DeviceLender) -> None:
    reader = Reader(progress_s=0.05)
    reader.transport.bind(lender.binding())
    handle, ended = lent(lender, 5), []
    reader.device.is_held = True

    def fetch() -> None:
        with pytest.raises(PeerLost):
            reader.transport.fetch(handle, target((0,)))
        ended.append(True)

    fetching = threading.Thread(target=fetch)
    fetching.start()
    until(lambda: reader.device.num_streams == 2)
    reader.transport.close()
    fetching.join()
    assert ended
    reader.slab.close()


def test_a_device_that_fails_loses_the_peer_and_its_stream_is_not_used_again(
    lender: DeviceLender, reader: Reader
) -> None:
    reader.transport.bind(lender.binding())
    handle = lent(lender, 5)
    reader.device.fails = "an illegal memory access was encountered"
    with pytest.raises(PeerLost, match="illegal memory access"):
        reader.transport.fetch(handle, target((0,)))
    reader.device.fails = ""
    num_streams = reader.device.num_streams
    assert reader.transport.fetch(handle, target((0,))) == BLOCK
    assert reader.device.num_streams == num_streams + 1


def test_streams_are_used_again_and_closed_at_the_end(lender: DeviceLender) -> None:
    reader = Reader()
    reader.transport.bind(lender.binding())
    for _ in range(5):
        reader.transport.fetch(lent(lender, 5), target((0,)))
    assert reader.device.num_streams == 2  # the slab's own, and one
    reader.close()
    assert reader.device.num_streams == 0 and not reader.device.ranges


@pytest.mark.parametrize(
    ("hello", "error", "words"),
    [
        (b"\xc1", LayoutMismatch, "not a hello"),
        (msgpack.packb((b"", b"")), LayoutMismatch, "not a hello"),
        (msgpack.packb((b"b", b"h" * 65, "sum128")), LayoutMismatch, "not a hello"),
        (msgpack.packb((b"b", b"", "sum128")), LayoutMismatch, "not a hello"),
        (msgpack.packb(("b", b"h", "sum128")), LayoutMismatch, "not a hello"),
        (msgpack.packb((b"b", b"h", "sum128")), LayoutMismatch, "not a binding"),
        ("other digests", LayoutMismatch, "lender@1: seals with xxh3_128, this node compares sum128"),
        ("other node", PeerLost, "now belongs to other@2"),
        ("other shape", LayoutMismatch, "was announced as"),
        ("no memory", PeerLost, "cannot be mapped on a stand-in"),
    ],
)
def test_an_owner_that_says_something_else_is_not_believed(
    reader: Reader, lender: DeviceLender, hello: bytes | str, error: type[Exception], words: str
) -> None:
    server = Door(TOKEN)
    binding = replace(lender.binding(), address=server.open())
    told = {
        "other node": replace(binding, node=NodeId("other@2")),
        "other shape": replace(binding, shape=replace(SMALL, num_blocks=31)),
    }
    if isinstance(hello, str):
        digests = "xxh3_128" if hello == "other digests" else "sum128"
        hello = msgpack.packb((told.get(hello, binding).pack(), b"/proc/self/nothing", digests))
    server.start(hello)
    with pytest.raises(error, match=words):
        reader.transport.bind(binding)
    assert reader.num_mapped == 0
    server.close()


def test_blocks_that_cannot_be_moved_in_vectors_are_refused_when_the_slab_is_made() -> None:
    odd = SlabShape(KVLayout(1, 1, 3, 1, "float16"), 4)
    with pytest.raises(ConfigError, match="12 bytes: on a device they must be a multiple of 16"):
        StandInSlab(odd)


def test_the_slab_is_a_tensor_without_a_copy() -> None:
    with StandInSlab(SMALL) as slab:
        tensor = slab.buffer
        assert tensor.shape == (SMALL.total_bytes,)
        tensor[SMALL.block_offset(3)] = 9
        assert slab.read_block(3)[0] == 9
        del tensor
        gc.collect()


def test_without_a_gpu_the_transport_says_why_it_cannot_run() -> None:
    why = cuda_ipc.can_run()
    assert why is None or "no CUDA device" in why or "cupy is not installed" in why
