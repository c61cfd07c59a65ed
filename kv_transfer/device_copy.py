"""One fetch between two slabs in device memory: queued as a whole, waited for once, and believed only as far as proven.

    our generations written | theirs read | blocks gathered | theirs read again | what ours then hold is summed up

All of it on one stream, so that each is over before the next begins; the owner's own order (generation, then bytes) is
that of its stream. A copy counts only when both readings give what was lent and the digests are those of the handle.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from core.errors import PeerLost
from core.kv import FetchTarget, KVHandle
from kv_transfer.device import Columns, DeviceFailed, Found, SlabAt, Stream
from kv_transfer.faults import Block, Faults, NoFaults
from kv_transfer.lent import check_columns, check_digests, check_generations
from kv_transfer.sum128 import as_digests
from kv_transfer.waiting import naps

LOG = logging.getLogger(__name__)

Wait = Callable[[Callable[[], bool]], bool]


class DigestKind(Enum):
    """With what a pool's owner seals, so with what its readers compare. Both are 16 bytes over all bytes of a block.

    XXH3: pools in host memory. On a device it would cost each side a copy to the host: 5 GB/s on an H200.
    SUM128: pools in device memory. Computed there, over the block where it lies: one more read of what a copy has
    written.
    """

    XXH3 = "xxh3_128"
    SUM128 = "sum128"


class Stalled:
    """Whether this device has left a copy unfinished for too long: until it ends, nobody should queue another."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._num_stalled = 0

    def check(self) -> None:
        """Raises PeerLost while a copy is overdue."""
        if self._num_stalled:
            raise PeerLost(f"the device has not finished a copy for {self.limit_s:g} s")

    def wait(self, is_done: Callable[[], bool], peer: str, is_abandoned: Callable[[], bool]) -> bool:
        """Blocks until the copy has ended; returns whether within the limit.

        A kernel cannot be taken back, and until it ends it may write into the targets: so their fetch does not end
        either, unless the node itself is closing.
        """
        overdue = False
        try:
            for waited in naps():
                if is_done():
                    return not overdue
                if waited > self.limit_s and not overdue:
                    overdue = True
                    self._num_stalled += 1
                    LOG.critical("a copy from %s has run for %g s; its target blocks stay taken", peer, self.limit_s)
                if overdue and is_abandoned():
                    return False
        finally:
            self._num_stalled -= overdue
        raise AssertionError("naps never end")


@dataclass(frozen=True, slots=True)
class DeviceCopy:
    """One fetch from a mapped slab. `into` names our own blocks in `own`.

    Raises: from `run`, as `Transport.fetch`.
    """

    handle: KVHandle
    into: FetchTarget
    source: SlabAt
    own: SlabAt
    stream: Stream
    faults: Faults

    def run(self, check_peer: Callable[[], None], wait: Wait) -> int:
        """Copy all of the handle's blocks; returns the bytes moved.

        `check_peer` raises when the owner is gone; `wait` blocks until what it is given is true, and says if in time.
        """
        check_columns(self.handle, self.into, self.source.shape.num_blocks, self.own.shape.num_blocks)
        try:
            found = self._run(self._queue_copy, wait)
            check_generations(self.handle, found.before.tolist(), "before")
            check_generations(self.handle, found.after.tolist(), "during")
            if self._may_be_damaged:
                self._tell_faults(self.faults.after_copy)
                found = self._run(self._queue_proof, wait)
                # a reuse explains a wrong digest, and is nobody's damage
                check_generations(self.handle, found.after.tolist(), "during")
            check_digests(self.handle, as_digests(found.sums))
            check_peer()
            self._tell_faults(self.faults.after_check)
        except DeviceFailed as error:
            raise PeerLost(f"{self.handle.owner}: the copy on the device failed: {error}") from error
        return len(self.handle.block_ids) * self.own.shape.layout.bytes_per_block

    def _run(self, queue: Callable[[], None], wait: Wait) -> Found:
        self.stream.begin(Columns.of(self.handle.block_ids, self.into.block_ids, self.into.generations))
        queue()
        self.stream.end()
        if not wait(self.stream.is_done):
            raise PeerLost(f"{self.handle.owner}: the copy did not end in time")
        return self.stream.found()

    def _queue_copy(self) -> None:
        self.stream.write_generations(self.own)
        self.stream.read_before(self.source)
        self.stream.gather(self.source, self.own)
        self._queue_proof()

    def _queue_proof(self) -> None:
        self.stream.read_after(self.source)
        self.stream.add_sums(self.own)

    @property
    def _may_be_damaged(self) -> bool:
        return not isinstance(self.faults, NoFaults)

    def _tell_faults(self, happen: Callable[[Block], None]) -> None:
        """On the host, where faults can reach the bytes, and back to the device."""
        if not self._may_be_damaged:
            return
        for block in self.into.block_ids:
            pointer = self.own.block_pointer(block)
            data = self.stream.read(pointer, self.own.shape.layout.bytes_per_block)
            happen(data)
            self.stream.write(pointer, data)
