"""The rows that live in an executor between steps; a plan brings only what changed."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import StepFailed
from core.ids import AttemptId
from core.request import SamplingParams
from core.step import RowGrowth, RowJoin

Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class Row:
    """One attempt in the executor. `token_ids` are all known tokens, `num_computed` of them have KV.

    `slot` is its line in the block tables, `num_blocks` how much of that line counts.
    """

    attempt: AttemptId
    token_ids: "array[int]"
    num_computed: int
    sampling: SamplingParams
    slot: int
    num_blocks: int


class Rows:
    """Resident rows by attempt.

    Owns: each row's tokens, progress, sampling parameters and block table.
    Invariant: a slot belongs to one row; what lies beyond a row's `num_blocks` in its line means nothing.
    """

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int) -> None:
        self._pool_blocks = num_blocks
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._rows: dict[AttemptId, Row] = {}
        self._tables: Integers = np.zeros((16, 64), np.int64)
        self._free_slots = list(range(16))

    def __len__(self) -> int:
        return len(self._rows)

    def leave(self, attempt: AttemptId) -> None:
        """Forget a row; an unknown one is fine."""
        row = self._rows.pop(attempt, None)
        if row is not None:
            self._free_slots.append(row.slot)

    def join(self, join: RowJoin) -> None:
        """Take a row in. Raises StepFailed when it is resident already or names what does not exist."""
        if len(join.token_ids) % 4:
            raise StepFailed(f"row {join.attempt} has {len(join.token_ids)} bytes of token ids; each takes 4")
        token_ids = array("I", join.token_ids)
        self._check_join(join, token_ids)
        row = Row(join.attempt, token_ids, join.num_computed, join.sampling, self._take_slot(), 0)
        self._rows[join.attempt] = row
        self._append(row, join.block_ids)

    def grow(self, growth: RowGrowth) -> None:
        """Append blocks to a row's table. Raises StepFailed for an unknown row or block."""
        row = self[growth.attempt]
        self._check_blocks(growth)
        self._append(row, growth.block_ids)

    def __getitem__(self, attempt: AttemptId) -> Row:
        row = self._rows.get(attempt)
        if row is None:
            raise StepFailed(f"row {attempt} is not resident")
        return row

    def due(self, attempt: AttemptId, num_tokens: int) -> Row:
        """The row, if it can advance by `num_tokens`. Raises StepFailed when tokens or blocks are lacking."""
        row = self[attempt]
        end, known = row.num_computed + num_tokens, len(row.token_ids)
        if num_tokens < 1 or end > known:
            raise StepFailed(
                f"row {attempt} cannot advance {num_tokens} from {row.num_computed}: {known} tokens are known"
            )
        if end > row.num_blocks * self._block_size:
            held = f"{row.num_blocks} of {self._block_size}"
            raise StepFailed(f"row {attempt} needs blocks for {end} tokens and has {held}")
        return row

    def tables(self, rows: Sequence[Row]) -> Integers:
        """The rows' whole block tables, padded with each row's own first block.

        Padding is read and masked; a row's own memory cannot hold another row's NaN. Shapes: [rows, longest].
        """
        ends = np.array([row.num_blocks for row in rows])
        width = int(ends.max())
        lines = self._tables[[row.slot for row in rows], :width]
        return np.where(np.arange(width) < ends[:, None], lines, lines[:, :1])

    def _check_join(self, join: RowJoin, token_ids: "array[int]") -> None:
        if join.attempt in self._rows:
            raise StepFailed(f"row {join.attempt} joins and is resident already")
        if not 0 <= join.num_computed < len(token_ids):
            raise StepFailed(f"row {join.attempt} joins with {join.num_computed} of {len(token_ids)} tokens computed")
        if max(token_ids) >= self._vocab_size:
            last = self._vocab_size - 1
            raise StepFailed(f"row {join.attempt} holds token {max(token_ids)}; the vocabulary ends at {last}")
        self._check_blocks(join)

    def _check_blocks(self, change: RowJoin | RowGrowth) -> None:
        ids = change.block_ids
        if len(ids) != len(change.generations):
            raise StepFailed(f"row {change.attempt} has {len(ids)} blocks and {len(change.generations)} generations")
        if ids and not (min(ids) >= 0 and max(ids) < self._pool_blocks):
            raise StepFailed(f"row {change.attempt} names blocks {min(ids)} to {max(ids)} of {self._pool_blocks}")

    def _append(self, row: Row, block_ids: Sequence[int]) -> None:
        end = row.num_blocks + len(block_ids)
        self._widen(end)
        self._tables[row.slot, row.num_blocks : end] = block_ids
        row.num_blocks = end

    def _widen(self, width: int) -> None:
        lines, old = self._tables.shape
        if width > old:
            wider: Integers = np.zeros((lines, max(width, 2 * old)), np.int64)
            wider[:, :old] = self._tables
            self._tables = wider

    def _take_slot(self) -> int:
        if not self._free_slots:
            lines = len(self._tables)
            self._tables = np.concatenate((self._tables, np.zeros_like(self._tables)))
            self._free_slots = list(range(lines, 2 * lines))
        return self._free_slots.pop()
