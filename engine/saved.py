"""Rows whose KV waits in host memory while others use their blocks."""

from dataclasses import dataclass

from torch import Tensor

from core.errors import StepFailed
from core.ids import AttemptId
from core.step import RowGrowth
from engine.memory import KVMemory
from engine.rows import Row, Rows


@dataclass(frozen=True, slots=True)
class _Saved:
    row: Row
    data: Tensor


class SavedRows:
    """Rows that left the pool and may come back.

    Owns: copies of their blocks in host memory. How many there may be is the decode machine's to bound.
    """

    def __init__(self, memory: KVMemory) -> None:
        self._memory = memory
        self._saved: dict[AttemptId, _Saved] = {}

    def __len__(self) -> int:
        return len(self._saved)

    def save(self, rows: Rows, attempt: AttemptId) -> None:
        """Copy a row's blocks out; it is not resident afterwards. Raises StepFailed for an unknown row."""
        row = rows[attempt]
        data = self._memory.read_blocks(rows.block_ids(row))
        rows.leave(attempt)
        self._saved[attempt] = _Saved(row, data)

    def restore(self, rows: Rows, growth: RowGrowth) -> None:
        """Bring a row back into new blocks. Raises StepFailed where it was not saved or the blocks are too few."""
        saved = self._saved.pop(growth.attempt, None)
        if saved is None:
            raise StepFailed(f"row {growth.attempt} is restored and was not saved")
        if len(growth.block_ids) < len(saved.data):
            raise StepFailed(f"row {growth.attempt} comes back to {len(growth.block_ids)} of {len(saved.data)} blocks")
        rows.restore(saved.row, growth)
        self._memory.start_blocks(growth.block_ids, growth.generations, num_filled=len(saved.data))
        self._memory.write_blocks(rows.block_ids(saved.row)[: len(saved.data)], saved.data)

    def forget(self, attempt: AttemptId) -> None:
        """Let a copy go; an unknown one is fine."""
        self._saved.pop(attempt, None)
