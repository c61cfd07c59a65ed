"""The one read path of shared memory: copy lent blocks into ours, and believe nothing that is not proven.

On shared memory nothing can be revoked, so a lender may be writing what we read. A block counts only when its
generation, read before and after the copy, is the one that was lent, and so is the digest of the bytes that we then
hold. (A writer stores the new generation before its first byte. On processors that reorder loads the second read alone
would not do; the digest does.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from core.errors import Corrupt, LayoutMismatch, LeaseExpired
from core.kv import FetchTarget, KVHandle
from kv_transfer.copy_plan import check_ids
from kv_transfer.digest import PIECE_BYTES, block_digest
from kv_transfer.faults import Block, Faults
from kv_transfer.peers import Peer
from kv_transfer.slab import SlabView

BATCH_BYTES = 1 << 20
"""Blocks of about this much lie between two reads of their generations, and between two looks at whether the owner is
still there: one by one, both would cost a small block more than its copy."""


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """One fetch from a mapped pool. `into` names our own blocks in `own`.

    Raises: from `run`, as `Transport.fetch`.
    """

    handle: KVHandle
    into: FetchTarget
    peer: Peer
    own: SlabView
    faults: Faults

    def run(self) -> int:
        """Copy all of the handle's blocks; returns the bytes moved."""
        self._check_columns()
        for batch in self._batches():
            self._check_generations(batch, "before")
            self._copy_batch(batch)
            self._check_generations(batch, "during")
            self.peer.check()
        return len(self.handle.block_ids) * int(self.own.blocks.shape[1])

    def _check_columns(self) -> None:
        handle, into = self.handle, self.into
        columns = (handle.block_ids, handle.generations, handle.digests, into.block_ids, into.generations)
        if len({len(column) for column in columns}) != 1:
            raise LayoutMismatch(f"{handle.attempt}: the columns of its handle and target differ in length")
        check_ids(handle.block_ids, len(self.peer.view.blocks), "source")
        check_ids(into.block_ids, len(self.own.blocks), "target")

    def _batches(self) -> Iterator[slice]:
        """The columns, a batch at a time; our own headers say already that these blocks are about to change."""
        size = max(1, BATCH_BYTES // self.own.blocks.shape[1])
        for start in range(0, len(self.into.block_ids), size):
            batch = slice(start, min(start + size, len(self.into.block_ids)))
            self.own.generations[list(self.into.block_ids[batch])] = self.into.generations[batch]
            yield batch

    def _check_generations(self, batch: slice, when: str) -> None:
        blocks, lent = self.handle.block_ids[batch], self.handle.generations[batch]
        found = tuple(self.peer.view.generations[list(blocks)].tolist())
        if found == lent:
            return
        at = next(i for i, pair in enumerate(zip(found, lent, strict=True)) if pair[0] != pair[1])
        where = f"block {blocks[at]} of {self.handle.owner}"
        raise LeaseExpired(
            f"{self.handle.attempt}: {where} was reused {when} the copy (generation {found[at]}, lent as {lent[at]})"
        )

    def _copy_batch(self, batch: slice) -> None:
        sources, targets = self.handle.block_ids[batch], self.into.block_ids[batch]
        theirs, ours = self.peer.view.blocks, self.own.blocks
        for source, target, lent in zip(sources, targets, self.handle.digests[batch], strict=True):
            block = ours[target]
            if self._copy(theirs[source], block) != lent:
                self._check_generations(batch, "during")  # a reuse explains it, and is nobody's damage
                where = f"block {source} of {self.handle.owner}"
                raise Corrupt(f"{self.handle.attempt}: the digest of {where} is not the one that was lent")
            self.faults.after_check(block)

    def _copy(self, theirs: Block, ours: Block) -> bytes:
        """Returns the digest of what then lies in ours: piece by piece, each hashed while the core's cache has it."""
        if len(ours) <= PIECE_BYTES:
            ours[:] = theirs
            self.faults.after_copy(ours)
            return block_digest(ours)
        running = xxhash.xxh3_128()
        for start in range(0, len(ours), PIECE_BYTES):
            piece = ours[start : start + PIECE_BYTES]
            piece[:] = theirs[start : start + PIECE_BYTES]
            if start == 0:
                self.faults.after_copy(ours)
            running.update(piece.data)
        return running.digest()
