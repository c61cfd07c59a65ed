"""What the arms of `penstock bench kv` share, ours and peers': what blocks hold, which ones are read, the stopwatch.

numpy and the standard library only, and nothing of ours is imported: peers run it in environments of their own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
STAMP = np.dtype("<u8")


class WrongBytes(Exception):
    """A block does not hold what its source held."""


@dataclass(frozen=True, slots=True)
class Run:
    """One transfer: the blocks `sources` of the owner's pool, in order, into `targets` of the reader's."""

    sources: Sequence[int]
    targets: Sequence[int]


class Runs:
    """Which blocks the next transfer reads and writes.

    Always others than the last time, so that a small transfer does not find its blocks in a cache: KV that was just
    written elsewhere would not be in the reader's.
    Owns: the place in the pool that was reached.
    """

    def __init__(self, num_blocks: int, seed: int = 0) -> None:
        chance, self._num_blocks, self._next = Random(seed), num_blocks, 0
        self._sources, self._targets = list(range(num_blocks)), list(range(num_blocks))
        chance.shuffle(self._sources)
        chance.shuffle(self._targets)

    def next(self, num: int, is_scattered: bool) -> Run:
        """The next `num` blocks. Scattered: in random order on both sides, so that hardly two of them lie together."""
        start = self._next if self._next + num <= self._num_blocks else 0
        self._next = start + num
        if is_scattered:
            return Run(self._sources[start : start + num], self._targets[start : start + num])
        return Run(range(start, start + num), range(start, start + num))


class Contents:
    """What the owner's blocks hold: noise, and the block's own number at both ends."""

    def __init__(self, bytes_per_block: int) -> None:
        self._noise = np.random.default_rng(7).integers(0, 256, bytes_per_block, np.uint8)

    def fill(self, blocks: Bytes) -> None:
        """Write all blocks. Shapes: [num_blocks, bytes_per_block]."""
        blocks[:] = self._noise
        stamps = blocks.view(STAMP)
        stamps[:, 0] = stamps[:, -1] = np.arange(len(blocks), dtype=STAMP)

    def check(self, blocks: Bytes, run: Run) -> None:
        """Look at the first, the middle and the last block of a transfer. Raises WrongBytes."""
        for at in {0, len(run.sources) // 2, len(run.sources) - 1}:
            expected = self._noise.copy()
            expected.view(STAMP)[[0, -1]] = run.sources[at]
            if not np.array_equal(blocks[run.targets[at]], expected):
                raise WrongBytes(f"block {run.targets[at]} does not hold what block {run.sources[at]} held")


def stopped(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def first_arms(num: int, turn: int) -> Iterator[bool]:
    """Which of two arms begins, time after time: ABBA, the other way round at every second turn."""
    return (bool((i + turn) % 2) for i in range(num))


def touched(num_blocks: int, bytes_per_block: int) -> Bytes:
    """Private memory, every page of it written. Shapes: [num_blocks, bytes_per_block]."""
    blocks = np.empty((num_blocks, bytes_per_block), np.uint8)
    blocks[:] = 1
    return blocks
