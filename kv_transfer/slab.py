"""A node's KV memory: one range of bytes that can be handed to another process as a file descriptor."""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.kv import SlabShape

logger = logging.getLogger(__name__)

MADV_POPULATE_WRITE = 23
"""Linux 5.14; `mmap` has no name for it."""

POPULATE_BYTES = 64 << 20

F_SEAL_FUTURE_WRITE = 0x0010
"""Linux 5.1; `fcntl` names it from Python 3.13 on. No new writable mapping can be made, the owner's stays."""


@dataclass(frozen=True, slots=True)
class SlabView:
    """A slab's bytes as arrays, ours or a peer's; and where both lie, because to ask an array takes microseconds.

    Shapes: generations [num_blocks] u64; blocks [num_blocks, bytes_per_block] u8.
    """

    generations: npt.NDArray[np.uint64]
    blocks: npt.NDArray[np.uint8]
    addresses: tuple[int, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "addresses", (self.generations.ctypes.data, self.blocks.ctypes.data))

    @classmethod
    def over(cls, buffer: memoryview | mmap.mmap, shape: SlabShape) -> "SlabView":
        """The view of a buffer that is laid out as `shape` says; writable when the buffer is."""
        generations = np.frombuffer(buffer, np.uint64, shape.num_blocks)
        flat = np.frombuffer(buffer, np.uint8, shape.num_blocks * shape.layout.bytes_per_block, shape.blocks_offset)
        return cls(generations, flat.reshape(shape.num_blocks, shape.layout.bytes_per_block))

    @classmethod
    def nothing(cls) -> "SlabView":
        """The view of no memory, which keeps none."""
        return cls(np.empty(0, np.uint64), np.empty((0, 0), np.uint8))


class Slab:
    """All KV bytes of one node, laid out as its `SlabShape` says.

    Owns: the memory and its descriptor.
    Invariant: after `anonymous`, the size never changes, so that a reader's mapping cannot fault.
    """

    def __init__(self, shape: SlabShape, memory: mmap.mmap | bytearray, fd: int | None) -> None:
        self.shape = shape
        self.fd = fd
        self._memory = memory
        self.buffer = memoryview(memory)
        self.view = SlabView.over(self.buffer, shape)

    @classmethod
    def anonymous(cls, shape: SlabShape, name: str) -> "Slab":
        """Zeroed memory in a `memfd` of this name, which no path leads to. Raises OSError when there is too little."""
        fd = os.memfd_create(f"penstock-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, shape.total_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            memory = mmap.mmap(fd, shape.total_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except BaseException:
            os.close(fd)
            raise
        _seal_other_writers(fd)
        return cls(shape, memory, fd)

    @classmethod
    def in_process(cls, shape: SlabShape) -> "Slab":
        """Zeroed memory that cannot be handed to another process."""
        return cls(shape, bytearray(shape.total_bytes), None)

    def populate(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Take every page now, a part at a time; `progress` is told the bytes done and their total.

        The first touch of a page costs seven times what its copy does, and would fall on the first fetch into each
        block: 128 MiB took 335 ms into fresh memory, 45 into touched, 255 to touch. Kernels before 5.14 cannot do it,
        which is logged. Raises OSError where there is too little memory.
        """
        total = self.shape.total_bytes
        if not isinstance(self._memory, mmap.mmap):
            return
        for start in range(0, total, POPULATE_BYTES):
            length = min(POPULATE_BYTES, total - start)
            try:
                self._memory.madvise(MADV_POPULATE_WRITE, start, length)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                logger.info("this kernel cannot touch KV memory ahead; the first fetch into each block is slower")
                return
            progress(start + length, total)

    def set_generation(self, block: int, generation: int) -> None:
        """Say that `block` is about to be written as this generation; comes before the first byte."""
        self.view.generations[block] = generation

    def block(self, block: int) -> memoryview:
        """The bytes of one block, writable."""
        start = self.shape.block_offset(block)
        return self.buffer[start : start + self.shape.layout.bytes_per_block]

    def __enter__(self) -> "Slab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back; where arrays still lie over it, it goes with the last of them. Twice is fine."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
        self.view = SlabView.nothing()
        with contextlib.suppress(BufferError):
            self.buffer.release()
            if isinstance(self._memory, mmap.mmap):
                self._memory.close()


def _seal_other_writers(fd: int) -> None:
    """Even who opens our descriptor again for writing cannot map it so; kernels before 5.1 do not know this seal."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
    except OSError as error:
        logger.warning("this kernel cannot seal KV memory against other writers of the same user: %s", error)
