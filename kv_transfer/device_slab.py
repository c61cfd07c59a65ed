"""A node's KV memory on a device: the same layout as a slab of host memory, in an allocation of its own.

The generation header lies on the device too, in front of the blocks. Its writer is the executor, which stores a
generation on its own stream before the first byte of the block: that order is the whole of what a reader relies on, and
stores of the host could not be put into it. A reader looks at the header, copies, and looks again on one stream of its
own, so each look sees the device memory as it is then; one export covers header and blocks.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from core.errors import ConfigError
from core.kv import SlabShape
from kv_transfer.device import VECTOR_BYTES, Columns, Device, Found, SlabAt
from kv_transfer.sum128 import as_digests
from kv_transfer.waiting import wait_for

if TYPE_CHECKING:
    from torch import Tensor

SMALL_S = 60.0
"""How long something small may take; on a working device it is well below a second."""


class DeviceSlab:
    """All KV bytes of one node, in device memory, laid out as its `SlabShape` says.

    Owns: the allocation, and a stream for small reads and writes.
    Invariant: readers have let go of their mappings before `close`: what CUDA does otherwise is undefined.
    """

    def __init__(self, device: Device, shape: SlabShape) -> None:
        if shape.layout.bytes_per_block % VECTOR_BYTES:
            raise ConfigError(
                [f"KV blocks of {shape.layout.bytes_per_block} bytes: on a device they must be a multiple of 16"]
            )
        self.shape = shape
        self.device = device
        self.at = SlabAt(device.allocate(shape.total_bytes), shape)
        self._stream = device.stream()
        self._lock = threading.Lock()
        self._is_open = True

    @property
    def buffer(self) -> "Tensor":
        """The bytes as an executor takes them: a flat uint8 tensor on the device, without a copy."""
        return self.device.tensor(self.at.pointer, self.shape.total_bytes)

    def set_generation(self, block: int, generation: int) -> None:
        """Say that `block` is about to be written as this generation; comes before the first byte."""
        self.write_generations((block,), (generation,))

    def write_generations(self, block_ids: tuple[int, ...], generations: tuple[int, ...]) -> None:
        """The same for several blocks; all of it is in the device's memory when this returns."""
        self._run(Columns.of(block_ids, block_ids, generations), lambda: self._stream.write_generations(self.at))

    def generation(self, block: int) -> int:
        """What the header says of `block`."""
        with self._lock:
            return int(self._stream.read(self.at.pointer + 8 * block, 8).view(np.uint64)[0])

    def generations(self, block_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The same of several blocks, by one read of the whole header."""
        with self._lock:
            header = self._stream.read(self.at.pointer, 8 * self.shape.num_blocks).view(np.uint64)
        return tuple(header[list(block_ids)].tolist())

    def read_block(self, block: int, start: int = 0, num_bytes: int | None = None) -> bytes:
        """A copy of one block, or of `num_bytes` of it from `start` on."""
        size = self.shape.layout.bytes_per_block - start if num_bytes is None else num_bytes
        with self._lock:
            return self._stream.read(self.at.block_pointer(block) + start, size).tobytes()

    def write_block(self, block: int, data: bytes, start: int = 0) -> None:
        """Fill a block, or some bytes of it from `start` on."""
        with self._lock:
            self._stream.write(self.at.block_pointer(block) + start, np.frombuffer(data, np.uint8))

    def digests(self, block_ids: tuple[int, ...]) -> tuple[bytes, ...]:
        """`sum128` of each block, computed on the device: what a lender of a device pool seals with.

        The writer's own stream must have been waited for: this one does not wait for it.
        """
        columns = Columns.of(block_ids, block_ids, (0,) * len(block_ids))
        return as_digests(self._run(columns, lambda: self._stream.add_sums(self.at)).sums)

    def _run(self, columns: Columns, queue: Callable[[], None]) -> Found:
        with self._lock:
            self._stream.begin(columns)
            queue()
            self._stream.end()
            wait_for(self._stream, SMALL_S)
            return self._stream.found()

    def __enter__(self) -> "DeviceSlab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back, which no tensor over it survives. Twice is fine."""
        if self._is_open:
            self._is_open = False
            self._stream.close()
            self.device.free(self.at.pointer)
