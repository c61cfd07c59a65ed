"""What moving KV within device memory needs of a device: a narrow seam, CUDA on one side, the logic on the other.

A pointer is a number that only the device which gave it understands; it never travels. What travels is a handle.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from core.kv import SlabShape

if TYPE_CHECKING:
    from torch import Tensor  # only named here: the logic runs without torch

HANDLE_BYTES = 64
"""Of an exported allocation; the size of CUDA's own."""

VECTOR_BYTES = 16
"""Blocks are moved in vectors of this size, so a block's size must be a multiple."""


class DeviceFailed(Exception):
    """The device or its driver refused or lost something; the transport translates it. The text is the driver's."""


@dataclass(frozen=True, slots=True)
class SlabAt:
    """A slab in device memory, ours or a mapped one: where it begins, and how it is laid out."""

    pointer: int
    shape: SlabShape

    @property
    def blocks_pointer(self) -> int:
        """Where block 0 begins."""
        return self.pointer + self.shape.blocks_offset

    def block_pointer(self, block: int) -> int:
        """Where a block begins."""
        return self.pointer + self.shape.block_offset(block)


@dataclass(frozen=True, slots=True)
class Columns:
    """The blocks of one copy: from which to which, and the generations that the targets then have.

    Shapes: all [blocks]; ids i64, generations u64.
    """

    source_blocks: npt.NDArray[np.int64]
    target_blocks: npt.NDArray[np.int64]
    generations: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, source: tuple[int, ...], target: tuple[int, ...], generations: tuple[int, ...]) -> "Columns":
        """From the words of a handle and a target; their lengths are equal and their ids in range."""
        return cls(np.array(source, np.int64), np.array(target, np.int64), np.array(generations, np.uint64))


@dataclass(frozen=True, slots=True)
class Found:
    """What a copy saw. Shapes: generations [blocks] u64; sums [blocks, 2] u64 of the target blocks."""

    before: npt.NDArray[np.uint64]
    after: npt.NDArray[np.uint64]
    sums: npt.NDArray[np.uint64]


class Stream(Protocol):
    """One queue of work on a device. What is queued runs in that order, each deed seeing the whole effect of the last.

    From `begin` to `end` one copy is queued, without waiting for anything; then `is_done` is asked until it is true.
    """

    def begin(self, columns: Columns) -> None:
        """Bring the columns to the device."""
        ...

    def write_generations(self, own: SlabAt) -> None:
        """Store the targets' generations in our header."""
        ...

    def read_before(self, source: SlabAt) -> None:
        """Read the sources' generations, into `Found.before`."""
        ...

    def gather(self, source: SlabAt, own: SlabAt) -> None:
        """Copy the source blocks into the target blocks."""
        ...

    def read_after(self, source: SlabAt) -> None:
        """Read the sources' generations again, into `Found.after`."""
        ...

    def add_sums(self, own: SlabAt) -> None:
        """Sum up what the target blocks hold now, into `Found.sums`; left out, those are 0."""
        ...

    def end(self) -> None:
        """Bring what was found to the host, and mark the end."""
        ...

    def is_done(self) -> bool:
        """Whether everything queued up to `end` has run. Raises DeviceFailed."""
        ...

    def found(self) -> Found:
        """What the copy saw; only once it is done."""
        ...

    def read(self, pointer: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """A copy of device memory on the host; waits for this stream only."""
        ...

    def write(self, pointer: int, data: npt.NDArray[np.uint8]) -> None:
        """Put bytes into device memory; waits for this stream only."""
        ...

    def close(self) -> None:
        """Give the queue and its buffers back."""
        ...


class Device(Protocol):
    """One accelerator as the transport sees it. Every method may raise DeviceFailed."""

    @property
    def index(self) -> int:
        """Which of this process's devices it is, from 0."""
        ...

    @property
    def description(self) -> str:
        """Its name for messages."""
        ...

    @property
    def card(self) -> str:
        """Which card it is, by a name that every process of this host has for it."""
        ...

    def allocate(self, num_bytes: int) -> int:
        """Zeroed memory that can be exported, on its own, not part of a pool."""
        ...

    def free(self, pointer: int) -> None:
        """Give an allocation back."""
        ...

    def export(self, pointer: int) -> bytes:
        """The handle by which another process of this host maps an allocation; `HANDLE_BYTES` long at most."""
        ...

    def map(self, handle: bytes, num_bytes: int) -> int:
        """Another process's allocation, readable here."""
        ...

    def unmap(self, pointer: int) -> None:
        """Let go of a mapping."""
        ...

    def tensor(self, pointer: int, num_bytes: int) -> "Tensor":
        """An allocation as a flat uint8 tensor, without a copy. It owns nothing."""
        ...

    def stream(self) -> Stream:
        """A queue of its own, which waits for no other."""
        ...
