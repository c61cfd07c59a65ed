"""Blocks of a device, copied through host memory: the way of last resort between GPUs, where nothing else joins them.

Each block is copied to the host on its own, on the slab's own stream, and the other side copies it to its device: two
copies more than anything that reads device memory where it lies. What it cost on one GPU is in docs/gpu.md.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from core.errors import PeerLost
from core.kv import SlabShape
from kv_transfer.device import DeviceFailed
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.faults import Block


class StagedBlocks:
    """A slab in device memory, as a two-sided transport of host memory sees it (`packing.Blocks`).

    Owns: nothing; the slab is the node's. A device that fails ends the line as an input/output error would.
    """

    slab = None

    def __init__(self, slab: DeviceSlab) -> None:
        self._device_slab = slab

    @property
    def shape(self) -> SlabShape:
        """How the slab is laid out."""
        return self._device_slab.shape

    def buffer(self, num_bytes: int) -> Tensor:
        """Host memory to pack into. Shape: [num_bytes] u8."""
        return torch.empty(num_bytes, dtype=torch.uint8)

    def generations(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """What the header on the device says now."""
        with _failing():
            return self._device_slab.generations(tuple(block_ids))

    def write_generations(self, block_ids: Sequence[int], generations: Sequence[int]) -> None:
        """Into the header on the device. Raises PeerLost: there is no line yet that could end."""
        try:
            self._device_slab.write_generations(tuple(block_ids), tuple(generations))
        except DeviceFailed as error:
            raise PeerLost(f"our own device failed: {error}") from error

    def pack(self, block_ids: Sequence[int], start: int, packed: Tensor) -> None:
        """As `Blocks.pack`."""
        flat = packed.numpy()
        with _failing():
            for block, at, part in self._parts(block_ids, start, len(flat)):
                flat[part] = np.frombuffer(self._device_slab.read_block(block, at, part.stop - part.start), np.uint8)

    def unpack(self, packed: Tensor, block_ids: Sequence[int], start: int) -> None:
        """As `Blocks.unpack`."""
        flat = packed.numpy()
        with _failing():
            for block, at, part in self._parts(block_ids, start, len(flat)):
                self._device_slab.write_block(block, flat[part].tobytes(), at)

    def digests(self, block_ids: Sequence[int]) -> tuple[bytes, ...]:
        """On the device."""
        with _failing():
            return self._device_slab.digests(tuple(block_ids))

    @contextmanager
    def opened(self, block: int) -> Iterator[Block]:
        """A copy on the host, written back."""
        with _failing():
            data = np.frombuffer(bytearray(self._device_slab.read_block(block)), np.uint8)
        yield data
        with _failing():
            self._device_slab.write_block(block, data.tobytes())

    def _parts(self, block_ids: Sequence[int], start: int, num_bytes: int) -> Iterator[tuple[int, int, slice]]:
        """Block, place in it, and which of the packed bytes: whole blocks, or part of one."""
        size = self.shape.layout.bytes_per_block
        for packed in range(0, num_bytes, size):
            column, at = divmod(start + packed, size)
            yield block_ids[column], at, slice(packed, min(packed + size, num_bytes))


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except DeviceFailed as error:
        raise OSError(errno.EIO, f"the device failed: {error}") from error
