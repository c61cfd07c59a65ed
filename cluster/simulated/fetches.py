"""One simulated fetch: blocks are copied in two halves at different moments, and proven as shared memory does it."""

from dataclasses import dataclass

from core.commands import FetchKV
from core.errors import Corrupt, LeaseExpired
from engine.fake_memory import FakeMemory


@dataclass(slots=True)
class Fetch:
    """A running fetch from `source` into `target`.

    Invariant: between two calls half of a block is there; only the later one proves it.
    """

    command: FetchKV
    source: FakeMemory
    target: FakeMemory
    num_opened: int = 0
    why_ended: str = ""
    was_damaged: bool = False

    @property
    def num_blocks(self) -> int:
        """Blocks that it copies."""
        return len(self.command.handle.block_ids)

    def go_on(self, flip: bool) -> bool:
        """Close the open block, then open the next one; True when there is none. `flip` damages a byte under way.

        Raises: LeaseExpired, Corrupt.
        """
        if self.num_opened:
            self._close_block(flip)
        if self.num_opened == self.num_blocks:
            return True
        self._open_block()
        return False

    def _open_block(self) -> None:
        """Look at the next block's generation, mark our own, copy the first half."""
        column = self.num_opened
        self._check_generation(column)
        block, into = self.command.handle.block_ids[column], self.command.into
        self.target.generations[into.block_ids[column]] = into.generations[column]
        half = self.target.block_bytes // 2
        self.target.write(into.block_ids[column], 0, self.source.read(block, 0, half))
        self.num_opened += 1

    def _close_block(self, flip: bool) -> None:
        """Copy the second half, look at the generation again, compare digests."""
        column = self.num_opened - 1
        handle, into = self.command.handle, self.command.into
        block, own = handle.block_ids[column], into.block_ids[column]
        assert self.target.generations[own] == into.generations[column], f"block {own} was reused under a running fetch"
        half = self.target.block_bytes // 2
        rest = self.source.read(block, half, self.source.block_bytes)
        if flip:
            rest[-1] ^= 1
            self.was_damaged = True
        self.target.write(own, half, rest)
        self._check_generation(column)
        self._check_digest(column)

    def _check_generation(self, column: int) -> None:
        handle = self.command.handle
        found, lent = self.source.generations[handle.block_ids[column]], handle.generations[column]
        if found != lent:
            raise LeaseExpired(f"block {handle.block_ids[column]} was reused: generation {found}, lent as {lent}")

    def _check_digest(self, column: int) -> None:
        if self.target.digest(self.command.into.block_ids[column]) != self.command.handle.digests[column]:
            block = self.command.handle.block_ids[column]
            assert self.was_damaged, f"block {block} has other bytes under the generation that was lent"
            raise Corrupt(f"block {block} has another digest")
