"""Shards mapped into memory, and tensors copied out of them: each byte read once, each number checked."""

import mmap
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from core.errors import ConfigError
from engine.checkpoint import TensorEntry

STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""torch's types by the names that safetensors gives them."""

_PANEL = 1 << 21
"""Elements that are copied, checked and handed back at once."""


class Shards:
    """The shards of one folder.

    Owns: the maps. Pages that have been copied are handed back to the system (`MADV_DONTNEED`), so that the process
    holds the weights once while it loads, not twice; files stay in the page cache for the next process.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._maps = {path: _mapped(path) for path in paths}

    def view(self, entry: TensorEntry) -> Tensor:
        """A tensor as it lies in its shard; it is valid as long as this object is."""
        dtype, shape = STORED_DTYPES[entry.dtype], entry.shape
        return torch.frombuffer(self._maps[entry.shard], dtype=dtype, count=prod(shape), offset=entry.start).view(shape)

    def copy(self, entry: TensorEntry, into: Tensor, index: int | None = None) -> int:
        """Copy a tensor, or slice `index` of it, into one of the same shape; the bytes that were read.

        Raises ConfigError naming the tensor when a number is NaN or infinite, or becomes infinite in `into`'s type.
        """
        stored, start = self.view(entry), entry.start
        if index is not None:
            stored, start = stored[index], start + index * stored[index].nbytes
        source, target = stored.reshape(-1), into.view(-1)
        for first in range(0, len(source), _PANEL):
            panel = source[first : first + _PANEL]
            if not _is_finite(target[first : first + _PANEL].copy_(panel)):
                of = f"tensor {entry.name}" if index is None else f"tensor {entry.name}[{index}]"
                kind = str(into.dtype).removeprefix("torch.")
                raise ConfigError(
                    [f"{entry.shard}: {of} holds NaN or infinite numbers in {kind}; fetch the file again"]
                )
            at = start + first * source.element_size()
            self._hand_back(entry.shard, at, at + panel.nbytes)
        return stored.nbytes

    def _hand_back(self, shard: Path, start: int, end: int) -> None:
        """Whole pages only: others hold neighbours that are still to be read."""
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[shard].madvise(mmap.MADV_DONTNEED, first, last - first)


def _mapped(path: Path) -> mmap.mmap:
    """Private and writable, since torch warns of memory that it may not write; nothing ever writes to it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _is_finite(copied: Tensor) -> bool:
    """One pass without a temporary. Measured on one core: 400 MB of float32 copied in 41 ms, and checked in 28."""
    low, high = copied.aminmax()
    return bool(low.isfinite() & high.isfinite())
