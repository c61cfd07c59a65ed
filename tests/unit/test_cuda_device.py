"""What `cuda_device` asks of CuPy: pointers, sizes, order of launches, errors. CuPy is played by host memory.

The kernels are the real ones, compiled for the host, so a wrong pointer or count shows as wrong bytes. Whether CuPy's
calls have these names and meanings is for a GPU to show.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.kv import KVLayout, SlabShape
from kv_transfer.cuda_device import CudaDevice, can_run
from kv_transfer.device import Columns, DeviceFailed
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.gather import NUM_THREADS
from kv_transfer.sum128 import as_digests, sum128
from kv_transfer.waiting import wait_for
from tests.unit.host_kernels import HostKernels

SHAPE = SlabShape(KVLayout(num_layers=2, num_kv_heads=2, head_dim=4, block_size=4, dtype="float32"), 600)
BLOCK = SHAPE.layout.bytes_per_block


class CudaError(RuntimeError):
    """As CuPy's: made from a status."""


class Fake:
    """CuPy's few calls over host memory; work that is queued has run when the call returns."""

    def __init__(self, kernels: HostKernels) -> None:
        self.kernels = kernels
        self.memory: dict[int, Any] = {}
        self.status = 0
        self.num_devices = 1
        self.launched: list[str] = []
        self.runtime = SimpleNamespace(
            CUDARuntimeError=CudaError,
            getDeviceCount=lambda: self.num_devices,
            deviceGetPCIBusId=lambda index: f"0000:3{index}:00.0",
            getDeviceProperties=lambda index: {"name": b"a fake", "multiProcessorCount": 2},
            malloc=self.malloc,
            free=lambda pointer: self.memory.pop(pointer),
            memset=self.memset,
            memsetAsync=lambda pointer, value, size, stream: self.memset(pointer, value, size),
            memcpyAsync=lambda to, source, size, kind, stream: ctypes.memmove(to, source, size),
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            deviceSynchronize=lambda: None,
            eventQuery=lambda event: self.status,
            ipcGetMemHandle=lambda pointer: pointer.to_bytes(64, "little"),
            ipcOpenMemHandle=lambda handle: int.from_bytes(handle, "little"),
            ipcCloseMemHandle=lambda pointer: None,
        )
        self.cuda = SimpleNamespace(
            runtime=self.runtime,
            compiler=SimpleNamespace(CompileException=CudaError),
            Device=nullcontext,
            Stream=lambda non_blocking: FakeStream(),
            Event=lambda disable_timing: SimpleNamespace(ptr=1, record=lambda stream: None),
            Memory=lambda size: SimpleNamespace(ptr=self.malloc(size)),
            alloc_pinned_memory=bytearray,
        )

    def malloc(self, size: int) -> int:
        made = np.full(size + 256, 0xAA, np.uint8)
        pointer = -(-int(made.ctypes.data) // 256) * 256
        self.memory[pointer] = made
        return pointer

    def memset(self, pointer: int, value: int, size: int) -> None:
        ctypes.memset(pointer, value, size)

    def RawModule(self, code: str, options: tuple[str, ...]) -> "Fake":  # noqa: N802 — CuPy's name
        return self

    def get_function(self, name: str) -> Any:
        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[object, ...]) -> None:
            assert block == (NUM_THREADS,)
            self.launched.append(name)
            self.kernels.launch(name, grid[0], *arguments)

        return launch


class FakeStream:
    ptr = 7

    def __enter__(self) -> "FakeStream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    return HostKernels(tmp_path_factory.mktemp("gather"))


@pytest.fixture
def fake(kernels: HostKernels, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(kernels)
    monkeypatch.setitem(sys.modules, "cupy", made)  # type: ignore[arg-type]
    return made


@pytest.fixture
def device(fake: Fake) -> Iterator[CudaDevice]:
    yield CudaDevice()
    assert [each for each in fake.memory.values() if len(each) > SHAPE.total_bytes] == []


def fill(slab: DeviceSlab, seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (SHAPE.num_blocks, BLOCK), np.uint8)
    slab.write_block(0, blocks.tobytes())
    return blocks


@pytest.mark.parametrize("num_blocks", [1, 3, 257, 600])
def test_a_copy_brings_what_its_columns_say_and_tells_what_it_saw(
    num_blocks: int, device: CudaDevice, fake: Fake
) -> None:
    with DeviceSlab(device, SHAPE) as theirs, DeviceSlab(device, SHAPE) as ours:
        lent, before = fill(theirs, 1), fill(ours, 2)
        rng = np.random.default_rng(3)
        source = tuple(int(each) for each in rng.permutation(600)[:num_blocks])
        target = tuple(int(each) for each in rng.permutation(600)[:num_blocks])
        theirs.write_generations(source, tuple((1 << 63) + block for block in source))
        stream = device.stream()
        fake.launched.clear()
        stream.begin(Columns.of(source, target, tuple(1000 + block for block in target)))
        stream.write_generations(ours.at)
        stream.read_before(theirs.at)
        stream.gather(theirs.at, ours.at)
        stream.read_after(theirs.at)
        stream.add_sums(ours.at)
        stream.end()
        wait_for(stream, 10)
        found = stream.found()
        assert fake.launched == ["write_generations", "read_generations", "gather", "read_generations", "add_sums"]
        assert found.before.tolist() == found.after.tolist() == [(1 << 63) + block for block in source]
        assert (found.sums == sum128(lent[list(source)])).all()
        expected = before.copy()
        expected[list(target)] = lent[list(source)]
        assert b"".join(ours.read_block(block) for block in range(600)) == expected.tobytes()
        assert [ours.generation(block) for block in target] == [1000 + block for block in target]
        stream.close()


def test_a_stream_is_used_again_for_fewer_blocks_and_for_none(device: CudaDevice) -> None:
    with DeviceSlab(device, SHAPE) as slab:
        blocks = fill(slab, 4)
        for ids in (tuple(range(100)), (5, 3), (), (7,)):
            expected = as_digests(sum128(blocks[list(ids)])) if ids else ()
            assert slab.digests(ids) == expected


def test_an_error_of_what_was_queued_is_not_taken_for_work_that_goes_on(device: CudaDevice, fake: Fake) -> None:
    stream = device.stream()
    stream.begin(Columns.of((), (), ()))
    stream.end()
    fake.status = 600
    assert not stream.is_done()
    fake.status = 700
    with pytest.raises(DeviceFailed, match="cuda:0: 700"):
        stream.is_done()
    fake.status = 0
    assert stream.is_done()


def test_an_allocation_is_zeroed_exported_and_mapped(device: CudaDevice) -> None:
    with DeviceSlab(device, SHAPE) as slab:
        assert slab.read_block(599) == bytes(BLOCK)
        handle = device.export(slab.at.pointer)
        assert len(handle) == 64
        assert device.map(handle, SHAPE.total_bytes) == slab.at.pointer
        device.unmap(slab.at.pointer)
    assert device.description == "cuda:0 (a fake)"
    assert device.card == "0000:30:00.0"


def test_a_machine_without_a_gpu_is_told_apart_from_one_without_cupy(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert can_run() is None
    fake.num_devices = 0
    assert can_run() == "no CUDA device"
    with pytest.raises(DeviceFailed, match="no CUDA device"):
        CudaDevice()
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "install penstock[cuda]" in str(can_run())
