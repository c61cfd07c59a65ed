"""What every fetch checks of a handle, whatever moves the bytes: columns and ids, generations, digests."""

from collections.abc import Sequence

from core.errors import Corrupt, LayoutMismatch, LeaseExpired
from core.kv import FetchTarget, KVHandle
from kv_transfer.copy_plan import check_ids


def check_columns(handle: KVHandle, into: FetchTarget, num_source: int, num_target: int) -> None:
    """Raises LayoutMismatch unless the columns are equally long and all ids are in pools of these sizes."""
    columns = (handle.block_ids, handle.generations, handle.digests, into.block_ids, into.generations)
    if len({len(column) for column in columns}) != 1:
        raise LayoutMismatch(f"{handle.attempt}: the columns of its handle and target differ in length")
    check_ids(handle.block_ids, num_source, "source")
    check_ids(into.block_ids, num_target, "target")


def check_generations(handle: KVHandle, found: Sequence[int], when: str) -> None:
    """Raises LeaseExpired where a block's generation was not the lent one."""
    for block, lent, seen in zip(handle.block_ids, handle.generations, found, strict=True):
        if seen != lent:
            where = f"block {block} of {handle.owner}"
            raise LeaseExpired(
                f"{handle.attempt}: {where} was reused {when} the copy (generation {seen}, lent as {lent})"
            )


def check_digests(handle: KVHandle, found: Sequence[bytes]) -> None:
    """Raises Corrupt where a block's digest is not the lent one."""
    for block, lent, seen in zip(handle.block_ids, handle.digests, found, strict=True):
        if seen != lent:
            where = f"block {block} of {handle.owner}"
            raise Corrupt(f"{handle.attempt}: the digest of {where} is not the one that was lent")
