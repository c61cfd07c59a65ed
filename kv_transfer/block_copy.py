"""The one read path of shared memory: copy lent blocks into ours, and believe nothing that is not proven.

On shared memory nothing can be revoked, so a lender may be writing what we read. A block counts only when its
generation, read before and after the copy, is the one that was lent, and so is the digest of the bytes that we then
hold. (A writer stores the new generation before its first byte. On processors that reorder loads the second read alone
would not do; the fences of the native copy do, and in any case the digest.)

Two copies with one meaning: compiled code for a batch of blocks at a time (`native/blocks.c`), and numpy block by block
where there is no compiler. Blocks of 4 KiB, in Python, cost ten times what their bytes do. Into pools that no cache
would hold, the compiled copy stores past the caches and digests each byte as it stores it.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import xxhash

from core.errors import Corrupt, LayoutMismatch, LeaseExpired
from core.kv import FetchTarget, KVHandle
from kv_transfer.copy_plan import check_ids
from kv_transfer.digest import DIGEST_BYTES, PIECE_BYTES, block_digest
from kv_transfer.faults import Block, Faults, NoFaults
from kv_transfer.native.library import MIN_BLOCK_BYTES, NO_HOOK, Finding, Hook, Native, Outcome, Pools, load
from kv_transfer.peers import Peer
from kv_transfer.slab import SlabView

BATCH_BYTES = 4 << 20
"""Blocks of about this much lie between two looks at whether the owner is still there."""

COMPARES_DIGESTS = True
"""A measurement may put False here, to see what the proof costs. No node can be asked to trust what it fetched."""


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """One fetch from a mapped pool. `into` names our own blocks in `own`, which are as large as the peer's.

    Raises: from `run`, as `Transport.fetch`.
    """

    handle: KVHandle
    into: FetchTarget
    peer: Peer
    own: SlabView
    faults: Faults

    def run(self) -> int:
        """Copy all of the handle's blocks; returns the bytes moved."""
        check_lengths(self.handle, self.into)
        num_blocks, block_bytes = len(self.into.block_ids), int(self.own.blocks.shape[1])
        native = load() if block_bytes >= MIN_BLOCK_BYTES else None
        copy = _NativeCopy(self, native) if native else _NumpyCopy.of(self)
        size = max(1, BATCH_BYTES // block_bytes)
        for start in range(0, num_blocks, size):
            copy.batch(start, min(start + size, num_blocks))
            self.peer.check()
        return num_blocks * block_bytes

    def check_ids(self) -> None:
        """Raises LayoutMismatch for ids that are not in the pools, or named twice."""
        check_ids(self.handle.block_ids, len(self.peer.view.blocks), "source")
        check_ids(self.into.block_ids, len(self.own.blocks), "target")

    def expired(self, column: int, when: str, found: int) -> LeaseExpired:
        """The error for a block that has another generation than it was lent with."""
        handle = self.handle
        where = f"block {handle.block_ids[column]} of {handle.owner}"
        lent = handle.generations[column]
        return LeaseExpired(
            f"{handle.attempt}: {where} was reused {when} the copy (generation {found}, lent as {lent})"
        )

    def corrupt(self, column: int) -> Corrupt:
        """The error for a block that holds other bytes than were lent."""
        where = f"block {self.handle.block_ids[column]} of {self.handle.owner}"
        return Corrupt(f"{self.handle.attempt}: the digest of {where} is not the one that was lent")


def check_lengths(handle: KVHandle, into: FetchTarget) -> None:
    """Raises LayoutMismatch for columns of different lengths."""
    num_blocks = len(handle.block_ids)
    columns = (handle.generations, handle.digests, into.block_ids, into.generations)
    if any(len(column) != num_blocks for column in columns):
        raise LayoutMismatch(f"{handle.attempt}: the columns of its handle and target differ in length")


class _NativeCopy:
    """Batches of blocks by the compiled copy, which finds wrong ids with the first one."""

    def __init__(self, fetch: BlockCopy, native: Native) -> None:
        handle, view, own = fetch.handle, fetch.peer.view, fetch.own
        num_theirs, num_own, block_bytes = len(view.blocks), len(own.blocks), own.blocks.shape[1]
        self._fetch = fetch
        self._copy_blocks = native.copy_blocks
        self._memory = view, own  # alive as long as their addresses are in use
        self._pools = Pools(*view.addresses, *own.addresses, block_bytes, num_theirs, num_own)
        self._packed = _packed(fetch)
        self._digests = b"".join(handle.digests)
        self._count = len(handle.digests)
        if len(self._digests) != DIGEST_BYTES * self._count:
            raise Corrupt(f"{handle.attempt}: a digest of its handle is not {DIGEST_BYTES} bytes long")
        self._raised: list[BaseException] = []
        self._hook = _hook_of(fetch, self._raised)

    def batch(self, start: int, end: int) -> None:
        """Copy and prove these columns."""
        finding, digests = Finding(), self._digests if COMPARES_DIGESTS else None
        outcome = self._copy_blocks(self._pools, self._packed, digests, self._count, start, end, self._hook, finding)
        if self._raised:
            raise self._raised[0]
        if outcome != Outcome.FINE:
            self._fail(Outcome(outcome), finding)
        if type(self._fetch.faults) is not NoFaults:
            for target in self._fetch.into.block_ids[start:end]:
                self._fetch.faults.after_check(self._fetch.own.blocks[target])

    def _fail(self, outcome: Outcome, finding: Finding) -> None:
        if outcome is Outcome.NO_SUCH_BLOCKS:
            self._fetch.check_ids()
            raise MemoryError("no memory to check block ids with")
        if outcome is Outcome.WRONG_DIGEST:
            raise self._fetch.corrupt(finding.column)
        when = "before" if outcome is Outcome.REUSED_BEFORE else "during"
        raise self._fetch.expired(finding.column, when, finding.generation)


def _hook_of(fetch: BlockCopy, raised: list[BaseException]) -> Callable[[int], None]:
    """What C calls when a block is copied; no exception passes through it. It refers to nobody that refers to it."""

    def after_copy(column: int) -> None:
        try:
            fetch.faults.after_copy(fetch.own.blocks[fetch.into.block_ids[column]])
        except BaseException as error:
            raised.append(error)

    return NO_HOOK if type(fetch.faults) is NoFaults else Hook(after_copy)


def _packed(fetch: BlockCopy) -> bytes:
    """The four columns of numbers, as C reads them. `struct` takes a quarter of the time that numpy does."""
    handle, into = fetch.handle, fetch.into
    n = len(handle.block_ids)
    try:
        return struct.pack(
            f"{n}q{n}Q{n}q{n}Q", *handle.block_ids, *handle.generations, *into.block_ids, *into.generations
        )
    except struct.error as error:
        fetch.check_ids()
        raise LayoutMismatch(f"{handle.attempt}: a generation has more than 64 bits: {error}") from error


@dataclass(frozen=True, slots=True)
class _NumpyCopy:
    """The same without a compiler: the generations of a batch before and after it, and its blocks one by one."""

    fetch: BlockCopy

    @classmethod
    def of(cls, fetch: BlockCopy) -> "_NumpyCopy":
        """For one fetch. Raises LayoutMismatch for ids that are not in the pools, or named twice."""
        fetch.check_ids()
        return cls(fetch)

    def batch(self, start: int, end: int) -> None:
        """Copy and prove these columns."""
        columns, into, own = range(start, end), self.fetch.into, self.fetch.own
        own.generations[list(into.block_ids[start:end])] = into.generations[start:end]
        self._check_generations(columns, "before")
        for column in columns:
            block = own.blocks[into.block_ids[column]]
            if self._copy(column, block) != self.fetch.handle.digests[column] and COMPARES_DIGESTS:
                self._check_generations(columns, "during")  # a reuse explains it, and is nobody's damage
                raise self.fetch.corrupt(column)
            self.fetch.faults.after_check(block)
        self._check_generations(columns, "during")

    def _check_generations(self, columns: range, when: str) -> None:
        ids, lent = (each[columns.start : columns.stop] for each in self._lent())
        found = self.fetch.peer.view.generations[list(ids)].tolist()
        for column, pair in zip(columns, zip(found, lent, strict=True), strict=True):
            if pair[0] != pair[1]:
                raise self.fetch.expired(column, when, pair[0])

    def _lent(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.fetch.handle.block_ids, self.fetch.handle.generations

    def _copy(self, column: int, ours: Block) -> bytes:
        """Returns the digest of what then lies in ours: piece by piece, each hashed while the core's cache has it."""
        theirs = self.fetch.peer.view.blocks[self.fetch.handle.block_ids[column]]
        if len(ours) <= PIECE_BYTES or type(self.fetch.faults) is not NoFaults:
            ours[:] = theirs
            self.fetch.faults.after_copy(ours)
            return block_digest(ours)
        running = xxhash.xxh3_128()
        for piece in _pieces(len(ours)):
            ours[piece] = theirs[piece]
            running.update(ours[piece].data)
        return running.digest()


def _pieces(num_bytes: int) -> Iterator[slice]:
    return (slice(start, start + PIECE_BYTES) for start in range(0, num_bytes, PIECE_BYTES))
