"""A node's blocks laid end to end in a tensor for sending, and back: of host memory, and of a device's.

Bytes `start` to `end` of some blocks laid end to end are either whole blocks or part of one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core.kv import KVLayout, SlabShape
from kv_transfer.digest import block_digest
from kv_transfer.faults import Block
from kv_transfer.slab import Slab, SlabView

Digests = Callable[[tuple[int, ...]], tuple[bytes, ...]]
"""Of what blocks of a pool hold now."""


class Blocks(Protocol):
    """What a two-sided transport needs of a slab."""

    @property
    def shape(self) -> SlabShape:
        """How the slab is laid out."""
        ...

    @property
    def slab(self) -> Slab | None:
        """The slab, where it is of host memory: only there are blocks laid out anew."""
        ...

    def buffer(self, num_bytes: int) -> Tensor:
        """Memory to pack into and to receive into, where this pool's blocks are. Shape: [num_bytes] u8."""
        ...

    def generations(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """What the header says of these blocks now."""
        ...

    def write_generations(self, block_ids: Sequence[int], generations: Sequence[int]) -> None:
        """Say that these blocks are about to change."""
        ...

    def pack(self, block_ids: Sequence[int], start: int, packed: Tensor) -> None:
        """Fill `packed` from the blocks, from byte `start` on; when it returns, they have been read."""
        ...

    def unpack(self, packed: Tensor, block_ids: Sequence[int], start: int) -> None:
        """The reverse; when it returns, `packed` may be filled again."""
        ...

    def digests(self, block_ids: Sequence[int]) -> tuple[bytes, ...]:
        """Of what these blocks hold now: with what pools of this memory are sealed (`DigestKind`)."""
        ...

    def opened(self, block: int) -> AbstractContextManager[Block]:
        """The bytes of a block on the host, for faults; what is done to them counts."""
        ...


class HostBlocks:
    """A slab of host memory. Owns: nothing; the slab is the node's."""

    def __init__(self, slab: Slab) -> None:
        self.slab = slab

    @property
    def shape(self) -> SlabShape:
        """How the slab is laid out."""
        return self.slab.shape

    @property
    def view(self) -> SlabView:
        """Its bytes."""
        return self.slab.view

    def buffer(self, num_bytes: int) -> Tensor:
        """Memory to pack into. Shape: [num_bytes] u8."""
        return torch.empty(num_bytes, dtype=torch.uint8)

    def generations(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """What the header says now."""
        return tuple(self.view.generations[list(block_ids)].tolist())

    def write_generations(self, block_ids: Sequence[int], generations: Sequence[int]) -> None:
        """Into the header."""
        self.view.generations[list(block_ids)] = generations

    def pack(self, block_ids: Sequence[int], start: int, packed: Tensor) -> None:
        """As `Blocks.pack`."""
        blocks, flat, size = self.view.blocks, packed.numpy(), self.shape.layout.bytes_per_block
        if start % size == 0 and len(flat) % size == 0:
            ids = block_ids[start // size : (start + len(flat)) // size]
            np.take(blocks, ids, axis=0, out=flat.reshape(len(ids), size), mode="clip")  # without a buffer of its own
        else:
            flat[:] = blocks[block_ids[start // size]][start % size : start % size + len(flat)]

    def unpack(self, packed: Tensor, block_ids: Sequence[int], start: int) -> None:
        """As `Blocks.unpack`."""
        blocks, flat, size = self.view.blocks, packed.numpy(), self.shape.layout.bytes_per_block
        if start % size == 0 and len(flat) % size == 0:
            ids = block_ids[start // size : (start + len(flat)) // size]
            blocks[list(ids)] = flat.reshape(len(ids), size)
        else:
            blocks[block_ids[start // size]][start % size : start % size + len(flat)] = flat

    def digests(self, block_ids: Sequence[int]) -> tuple[bytes, ...]:
        """xxh3, where they lie."""
        return tuple(block_digest(self.view.blocks[block]) for block in block_ids)

    @contextmanager
    def opened(self, block: int) -> Iterator[Block]:
        """The block itself."""
        yield self.view.blocks[block]


class BounceBlocks(HostBlocks):
    """Blocks of a peer's layout in memory of our own, on their way to be laid out anew. Owns: the memory."""

    def __init__(self, view: SlabView, layout: KVLayout) -> None:
        self._view = view
        self._shape = SlabShape(layout, len(view.blocks))

    @property
    def shape(self) -> SlabShape:
        """How the peer's slab is laid out, with as many blocks as there are here."""
        return self._shape

    @property
    def view(self) -> SlabView:
        """Their bytes."""
        return self._view


class TensorBlocks:
    """A slab that is one flat uint8 tensor, on any device; for a device, waits for its current stream only.

    Owns: nothing; the memory is the node's.
    """

    slab = None

    def __init__(self, memory: Tensor, shape: SlabShape, digests: Digests) -> None:
        self._shape = shape
        self._digests = digests
        self._generations = memory[: shape.num_blocks * 8].view(torch.int64)
        self._blocks = memory[shape.blocks_offset : shape.total_bytes].view(shape.num_blocks, -1)

    @property
    def shape(self) -> SlabShape:
        """How the slab is laid out."""
        return self._shape

    def buffer(self, num_bytes: int) -> Tensor:
        """Memory of the same device. Shape: [num_bytes] u8."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._blocks.device)

    def generations(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """What the header on the device says now."""
        return tuple(value % (1 << 64) for value in self._generations[self._index(block_ids)].tolist())

    def write_generations(self, block_ids: Sequence[int], generations: Sequence[int]) -> None:
        """Into the header on the device."""
        values = torch.from_numpy(np.array(generations, np.uint64).view(np.int64))
        self._generations[self._index(block_ids)] = values.to(self._generations.device)
        self._wait()

    def pack(self, block_ids: Sequence[int], start: int, packed: Tensor) -> None:
        """As `Blocks.pack`."""
        size, num_bytes = self._shape.layout.bytes_per_block, packed.numel()
        if start % size == 0 and num_bytes % size == 0:
            ids = self._index(block_ids[start // size : (start + num_bytes) // size])
            torch.index_select(self._blocks, 0, ids, out=packed.view(len(ids), size))
        else:
            packed.copy_(self._blocks[block_ids[start // size]][start % size : start % size + num_bytes])
        self._wait()

    def unpack(self, packed: Tensor, block_ids: Sequence[int], start: int) -> None:
        """As `Blocks.unpack`."""
        size, num_bytes = self._shape.layout.bytes_per_block, packed.numel()
        if start % size == 0 and num_bytes % size == 0:
            ids = self._index(block_ids[start // size : (start + num_bytes) // size])
            self._blocks.index_copy_(0, ids, packed.view(len(ids), size))
        else:
            self._blocks[block_ids[start // size]][start % size : start % size + num_bytes] = packed
        self._wait()

    def digests(self, block_ids: Sequence[int]) -> tuple[bytes, ...]:
        """On the device, after all that `unpack` has done."""
        return self._digests(tuple(block_ids))

    @contextmanager
    def opened(self, block: int) -> Iterator[Block]:
        """A copy on the host, written back."""
        data = self._blocks[block].cpu()
        yield data.numpy()
        self._blocks[block] = data.to(self._blocks.device)
        self._wait()

    def _index(self, block_ids: Sequence[int]) -> Tensor:
        return torch.tensor(tuple(block_ids), dtype=torch.int64, device=self._blocks.device)

    def _wait(self) -> None:
        if self._blocks.device.type == "cuda":
            torch.cuda.current_stream(self._blocks.device).synchronize()
