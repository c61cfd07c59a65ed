"""A device that is host memory, behind the same seam as CUDA.

It can catch what is queued in a wrong order, waited for too early, mapped or given back at a wrong time, written where
only reading is allowed (mappings are read-only), or read past an allocation. It knows nothing of what CUDA does when a
mapped owner dies, of memory ordering between streams, or of speed.
"""

import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kv_transfer.device import Columns, DeviceFailed, Found, SlabAt
from kv_transfer.sum128 import sum128

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Range:
    """An allocation, or a mapping."""

    data: Bytes
    memory: mmap.mmap
    fd: int


class StandInDevice:
    """Owns: its allocations and mappings; `ranges` are those that are still there.

    Devices of different indices cannot reach each other's memory, as cards without peer access.
    """

    def __init__(self, index: int = 0) -> None:
        self.ranges: dict[int, Range] = {}
        self.index = index
        self.is_held = False
        self.fails = ""
        self.num_streams = 0
        self._next = 1 << 40
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        return "a stand-in"

    @property
    def card(self) -> str:
        return f"stand-in {self.index}"

    def allocate(self, num_bytes: int) -> int:
        fd = os.memfd_create("penstock-stand-in", os.MFD_CLOEXEC)
        os.ftruncate(fd, num_bytes)
        return self._keep(mmap.mmap(fd, num_bytes), fd)

    def _keep(self, memory: mmap.mmap, fd: int) -> int:
        with self._lock:
            pointer, self._next = self._next, self._next + len(memory) + (1 << 20)
            self.ranges[pointer] = Range(np.frombuffer(memory, np.uint8), memory, fd)
        return pointer

    def free(self, pointer: int) -> None:
        self.unmap(pointer)

    def export(self, pointer: int) -> bytes:
        return f"{self.index}/proc/{os.getpid()}/fd/{self.ranges[pointer].fd}".encode()

    def map(self, handle: bytes, num_bytes: int) -> int:
        index, _, path = handle.partition(b"/")
        if index != str(self.index).encode():
            raise DeviceFailed(f"no peer access to device {index.decode(errors='replace')}")
        try:
            fd = os.open(b"/" + path, os.O_RDONLY | os.O_CLOEXEC)
            return self._keep(mmap.mmap(fd, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ), fd)
        except (OSError, ValueError) as error:
            raise DeviceFailed(f"invalid handle: {error}") from error

    def unmap(self, pointer: int) -> None:
        gone = self.ranges.pop(pointer)
        os.close(gone.fd)

    def tensor(self, pointer: int, num_bytes: int) -> torch.Tensor:
        return torch.from_numpy(self.at(pointer, num_bytes))

    def at(self, pointer: int, num_bytes: int) -> Bytes:
        """The bytes at a pointer; an access outside of every range is a bug of the caller."""
        base = max(start for start in self.ranges if start <= pointer)
        data = self.ranges[base].data
        assert pointer - base + num_bytes <= len(data), "illegal address"
        return data[pointer - base : pointer - base + num_bytes]

    def stream(self) -> "StandInStream":
        return StandInStream(self)


class StandInStream:
    """Runs what was queued when it is asked whether it is done, which is as late as a device could."""

    def __init__(self, device: StandInDevice) -> None:
        device.num_streams += 1
        self._device = device
        self._queue: list[Callable[[], None]] = []
        self._columns = Columns.of((), (), ())
        self._found = Found(*(np.empty(0, np.uint64),) * 2, np.empty((0, 2), np.uint64))
        self._has_ended = True

    def begin(self, columns: Columns) -> None:
        assert self._has_ended and not self._queue, "a copy began before the last one was done"
        size = len(columns.source_blocks)
        self._columns, self._has_ended = columns, False
        self._found = Found(np.zeros(size, np.uint64), np.zeros(size, np.uint64), np.zeros((size, 2), np.uint64))

    def write_generations(self, own: SlabAt) -> None:
        def run() -> None:
            self._header(own)[self._columns.target_blocks] = self._columns.generations

        self._queue.append(run)

    def read_before(self, source: SlabAt) -> None:
        self._queue.append(lambda: self._read(source, self._found.before))

    def read_after(self, source: SlabAt) -> None:
        self._queue.append(lambda: self._read(source, self._found.after))

    def _read(self, source: SlabAt, into: npt.NDArray[np.uint64]) -> None:
        into[:] = self._header(source)[self._columns.source_blocks]

    def gather(self, source: SlabAt, own: SlabAt) -> None:
        def run() -> None:
            self._blocks(own)[self._columns.target_blocks] = self._blocks(source)[self._columns.source_blocks]

        self._queue.append(run)

    def add_sums(self, own: SlabAt) -> None:
        def run() -> None:
            self._found.sums[:] = sum128(self._blocks(own)[self._columns.target_blocks])

        self._queue.append(run)

    def end(self) -> None:
        self._has_ended = True

    def is_done(self) -> bool:
        assert self._has_ended, "asked before the end was queued"
        self._check()
        if self._device.is_held:
            return False
        while self._queue:
            self._queue.pop(0)()
        return True

    def _check(self) -> None:
        if self._device.fails:
            raise DeviceFailed(self._device.fails)

    def found(self) -> Found:
        assert not self._queue, "looked at before it was done"
        return self._found

    def read(self, pointer: int, num_bytes: int) -> Bytes:
        self._check()
        return self._device.at(pointer, num_bytes).copy()

    def write(self, pointer: int, data: Bytes) -> None:
        self._check()
        self._device.at(pointer, len(data))[:] = data

    def close(self) -> None:
        self._device.num_streams -= 1

    def _header(self, slab: SlabAt) -> npt.NDArray[np.uint64]:
        return self._device.at(slab.pointer, slab.shape.num_blocks * 8).view(np.uint64)

    def _blocks(self, slab: SlabAt) -> Bytes:
        size = slab.shape.layout.bytes_per_block
        flat = self._device.at(slab.blocks_pointer, slab.shape.num_blocks * size)
        return flat.reshape(slab.shape.num_blocks, size)
