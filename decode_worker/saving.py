"""Rows that give their blocks up and keep their KV in host memory, where that is cheaper than to compute it again.

In a plan's `saved` a row is copied out; until that step is over it holds its blocks, because a fetch may write freed
ones at once. Then it holds none, until there are enough for it to come back by `restored`.
"""

from collections.abc import Iterable

from core.kv import num_blocks
from core.lifecycle import BlockState, DecodeState
from core.step import RowGrowth
from decode_worker.batching import DecodeRow, DecodeRows
from decode_worker.config import DecodeConfig
from engine.blocks import BlockPool


def may_save(row: DecodeRow, num_saved: int, pool: BlockPool, config: DecodeConfig) -> bool:
    """Whether its KV should go to host memory, where `num_saved` blocks are: cheaper than a prefill, and room for it.

    A row that no executor has met yet has nothing there that could be copied, and one that has outgrown this pool would
    never come back.
    """
    costs = config.costs
    if costs is None or row.join is not None or num_saved + row.num_told > config.max_saved_blocks:
        return False
    if num_blocks(row.num_context + 1, config.block_size) > pool.num_blocks:
        return False
    return costs.save_s(row.num_told) < costs.recompute_s(row.num_context)


def save(rows: DecodeRows, row: DecodeRow, step: int, pool: BlockPool) -> None:
    """Put a row that is in no step into the `saved` of this one. Blocks that the executor never met go back at once."""
    assert not row.num_in_flight, f"{row.id} is saved while a step runs it"
    pool.free(row.table[row.num_told :])
    row.table = row.table[: row.num_told]
    row.state, row.last_step = DecodeState.SAVED, step
    row.num_saved, row.num_saves = row.num_told, row.num_saves + 1
    rows.saved.append(row.id)


def let_go(row: DecodeRow, pool: BlockPool) -> None:
    """The step that copied it out is over: its blocks are anybody's."""
    pool.free(row.table)
    row.table, row.num_told, row.num_sealed = (), 0, 0


def restore(rows: DecodeRows, row: DecodeRow, step: int, pool: BlockPool) -> None:
    """Blocks for a saved row, which is back with this step."""
    table = pool.allocate(row.num_saved, BlockState.IN_USE)
    assert table is not None, f"{row.id} is restored without blocks"
    row.table, row.num_told, row.num_saved = table, len(table), 0
    row.state, row.last_step = DecodeState.DECODING, step
    rows.restored.append(RowGrowth(row.id, table, pool.generations(table)))


def num_needed(row: DecodeRow, others: Iterable[DecodeRow], block_size: int) -> int:
    """Available blocks with which a saved row may come back: its own, and one for each running row to grow into.

    With fewer it would be chosen to leave again before it has won a token for each block that was copied.
    """
    own = max(row.num_saved, num_blocks(row.num_context + 1, block_size))
    return own + sum(other.is_running for other in others)
