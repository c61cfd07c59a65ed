"""Rows that go on at another node: they run no further step, are sealed by one, and then belong to the lender."""

from collections.abc import Mapping
from dataclasses import replace

from core.kv import num_blocks
from core.lifecycle import DecodeState
from core.stats import Timing
from decode_worker.batching import DecodeRow, DecodeRows
from engine.blocks import BlockPool


def add_seal(rows: DecodeRows, row: DecodeRow, step: int, block_size: int) -> None:
    """Have this step digest what was written or brought back since the prompt's full blocks were sealed.

    The row is in no step, so its bytes are final: also those of its last block, which may be begun.
    """
    assert not row.num_in_flight, f"{row.id} is sealed while a step runs it"
    rows.seal.extend(unsealed(row, block_size))
    row.last_step = step


def unsealed(row: DecodeRow, block_size: int) -> tuple[int, ...]:
    """The row's blocks whose digest is not known, or no longer true; the last one at least."""
    end = num_blocks(row.num_context, block_size)
    return row.table[min(row.num_sealed, end - 1) : end]


def seal(row: DecodeRow, digests: Mapping[int, bytes], pool: BlockPool, block_size: int) -> None:
    """The step is over."""
    for block in unsealed(row, block_size):
        pool.reseal(block, digests[block])
    row.num_sealed = row.num_context // block_size


def stay(row: DecodeRow) -> None:
    """It does not leave after all."""
    row.state, row.to = DecodeState.DECODING, None


def timing_so_far(row: DecodeRow, now: float) -> Timing:
    """The row's ledger up to now, to which the next node adds."""
    started_at = now if row.started_at is None else row.started_at
    return replace(
        row.timing,
        queue_decode_s=row.timing.queue_decode_s + started_at - row.ready_at,
        decode_s=row.timing.decode_s + now - started_at,
    )
