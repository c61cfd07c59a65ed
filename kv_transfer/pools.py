"""Our own pool as the receiving end of a transport that writes into it by address: in host or in device memory."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from core.kv import SlabShape
from kv_transfer.device_copy import DigestKind
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.digest import block_digest
from kv_transfer.faults import Block
from kv_transfer.slab import Slab


class Pool(Protocol):
    """A slab with an address. `device` is None in host memory; `kind` is what its blocks are sealed with."""

    @property
    def shape(self) -> SlabShape:
        """How it is laid out."""
        ...

    @property
    def address(self) -> int:
        """Where it begins, as the network card counts."""
        ...

    @property
    def device(self) -> int | None:
        """In which GPU's memory it lies."""
        ...

    @property
    def kind(self) -> DigestKind:
        """What its blocks are sealed with."""
        ...

    def write_generations(self, block_ids: tuple[int, ...], generations: tuple[int, ...]) -> None:
        """In the header; comes before the first byte."""
        ...

    def digests(self, block_ids: tuple[int, ...]) -> tuple[bytes, ...]:
        """Of what the blocks hold now."""
        ...

    def tell(self, block_ids: tuple[int, ...], happen: Callable[[Block], None]) -> None:
        """Show each block to a fault, writable."""
        ...


class HostPool:
    """A slab in host memory."""

    device = None
    kind = DigestKind.XXH3

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self.shape = slab.shape
        self.address = int(np.frombuffer(slab.buffer, np.uint8).ctypes.data)

    def write_generations(self, block_ids: tuple[int, ...], generations: tuple[int, ...]) -> None:
        """By the host."""
        self._slab.view.generations[list(block_ids)] = generations

    def digests(self, block_ids: tuple[int, ...]) -> tuple[bytes, ...]:
        """xxh3, where they lie."""
        return tuple(block_digest(self._slab.view.blocks[block]) for block in block_ids)

    def tell(self, block_ids: tuple[int, ...], happen: Callable[[Block], None]) -> None:
        """Where they lie."""
        for block in block_ids:
            happen(self._slab.view.blocks[block])


class DevicePool:
    """A slab in device memory."""

    kind = DigestKind.SUM128

    def __init__(self, slab: DeviceSlab) -> None:
        self._slab = slab
        self.shape = slab.shape
        self.address = slab.at.pointer
        self.device: int | None = slab.device.index

    def write_generations(self, block_ids: tuple[int, ...], generations: tuple[int, ...]) -> None:
        """By a kernel, which has run when this returns."""
        self._slab.write_generations(block_ids, generations)

    def digests(self, block_ids: tuple[int, ...]) -> tuple[bytes, ...]:
        """On the device."""
        return self._slab.digests(block_ids)

    def tell(self, block_ids: tuple[int, ...], happen: Callable[[Block], None]) -> None:
        """Over a copy on the host, and back."""
        for block in block_ids:
            data = np.frombuffer(bytearray(self._slab.read_block(block)), np.uint8)
            happen(data)
            self._slab.write_block(block, data.tobytes())
