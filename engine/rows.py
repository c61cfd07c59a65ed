"""The rows that live in an executor between steps; a plan brings only what changed."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.errors import StepFailed
from core.ids import AttemptId
from core.request import SamplingParams
from core.step import RowGrowth, RowJoin
from engine.guides import Guide
from engine.ngram import Lookup
from engine.penalties import History, needs_history

Integers = npt.NDArray[np.int64]
_FIRST_SLOTS = 64


@dataclass(slots=True)
class Row:
    """One attempt in the executor. Its first `num_computed` tokens have KV, once all launched steps are over.

    `token_ids` are the known tokens as far as the host has them; `num_pending` more were sampled by a step that has not
    been collected. `slot` is its line in the device's tables, `num_blocks` how much of that line counts. `history` is
    its tokens on the device where its sampling parameters ask for them; `lookup` is made with its first draft;
    `guide` is there where its answer has a format.
    """

    attempt: AttemptId
    token_ids: "array[int]"
    num_computed: int
    num_prompt_tokens: int
    sampling: SamplingParams
    slot: int = -1
    num_blocks: int = 0
    num_pending: int = 0
    history: Tensor | None = None
    lookup: Lookup | None = None
    guide: Guide | None = None

    @property
    def num_known(self) -> int:
        """Tokens that exist, those included that the host has not seen yet."""
        return len(self.token_ids) + self.num_pending

    def sampling_history(self) -> History | None:
        """What penalties are computed from; None where none are asked."""
        if self.history is None:
            return None
        return History(self.history[: self.num_known], self.num_prompt_tokens)


class Rows:
    """Resident rows by attempt, and what the device must know of them.

    Owns: each row's tokens, progress and sampling parameters; on the device one line a row in `tables` (its block ids,
    the rest filled with its first block, so that what is read beyond it is its own), `contexts` (`num_computed`) and
    `next_tokens` (its last known token).
    Invariant: a slot belongs to one row. Between steps only differences travel to the device.
    """

    def __init__(
        self, num_blocks: int, block_size: int, vocab_size: int, device: torch.device, max_row_blocks: int
    ) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._device = device
        self._rows: dict[AttemptId, Row] = {}
        self._free_slots = list(range(_FIRST_SLOTS))
        self.tables = torch.zeros(_FIRST_SLOTS, min(num_blocks, max_row_blocks), dtype=torch.int64, device=device)
        self.contexts = torch.zeros(_FIRST_SLOTS, dtype=torch.int64, device=device)
        self.next_tokens = torch.zeros(_FIRST_SLOTS, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, attempt: AttemptId) -> bool:
        return attempt in self._rows

    def __getitem__(self, attempt: AttemptId) -> Row:
        row = self._rows.get(attempt)
        if row is None:
            raise StepFailed(f"row {attempt} is not resident")
        return row

    # ── coming, growing, going ───────────────────────────────────────────────────────────────────────────────────────

    def leave(self, attempt: AttemptId) -> Row | None:
        """Forget a row and return it; an unknown one is fine."""
        row = self._rows.pop(attempt, None)
        if row is not None:
            self._free_slots.append(row.slot)
        return row

    def join(self, join: RowJoin) -> Row:
        """Take a row in. Raises StepFailed when it is resident already or names what does not exist."""
        if len(join.token_ids) % 4:
            raise StepFailed(f"row {join.attempt} has {len(join.token_ids)} bytes of token ids; each takes 4")
        token_ids = array("I", join.token_ids)
        self._check_join(join, token_ids)
        row = Row(join.attempt, token_ids, join.num_computed, join.num_prompt_tokens, join.sampling)
        if needs_history(row.sampling):
            row.history = self._history(row)
        self._seat(row, join.block_ids)
        return row

    def restore(self, row: Row, growth: RowGrowth) -> None:
        """Take a row in again that left by being saved, with new blocks. Raises StepFailed as `join`."""
        if row.attempt in self._rows:
            raise StepFailed(f"row {row.attempt} is restored and is resident already")
        self._check_blocks(growth)
        row.num_blocks = 0
        self._seat(row, growth.block_ids)

    def grow(self, growth: RowGrowth) -> None:
        """Append blocks to a row's table. Raises StepFailed for an unknown row or block."""
        row = self[growth.attempt]
        self._check_blocks(growth)
        self._append(row, growth.block_ids)

    def block_ids(self, row: Row) -> Tensor:
        """A row's table on the device. Shapes: [num_blocks]."""
        return self.tables[row.slot, : row.num_blocks]

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def due(self, attempt: AttemptId, num_tokens: int, max_drafts: int = 0) -> Row:
        """The row, if it can advance by `num_tokens`. Raises StepFailed when tokens or blocks are lacking."""
        row = self[attempt]
        end, known = row.num_computed + num_tokens, row.num_known
        if num_tokens < 1 or end > known:
            raise StepFailed(
                f"row {attempt} cannot advance {num_tokens} from {row.num_computed}: {known} tokens are known"
            )
        if end + max_drafts > row.num_blocks * self._block_size:
            held = f"{row.num_blocks} of {self._block_size}"
            raise StepFailed(f"row {attempt} needs blocks for {end + max_drafts} tokens and has {held}")
        return row

    def slots(self, rows: Sequence[Row]) -> Tensor:
        """The rows' lines in `tables`. Shapes: [rows]."""
        return torch.tensor([row.slot for row in rows], dtype=torch.int64).to(self._device, non_blocking=True)

    def take_token(self, row: Row, token: int) -> None:
        """The host learns of a token that the device knows already."""
        row.token_ids.append(token)
        self._collected(row)
        if row.lookup is not None:
            row.lookup.append(token)

    def take_drafted(self, row: Row, tokens: Sequence[int]) -> None:
        """What a step with drafts came to: all but the last of `tokens` have KV. The device learns of it here."""
        row.token_ids.extend(tokens)
        self._collected(row)
        row.num_computed += len(tokens) - 1
        if row.lookup is not None:
            for token in tokens:
                row.lookup.append(token)
        self.contexts[row.slot] = row.num_computed
        self.next_tokens[row.slot] = tokens[-1]

    def lookup_of(self, row: Row) -> Lookup:
        """The row's index of its own past, from which drafts are taken."""
        if row.lookup is None:
            row.lookup = Lookup()
            for token in row.token_ids:
                row.lookup.append(token)
        return row.lookup

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _collected(self, row: Row) -> None:
        row.num_pending -= 1
        if row.guide is not None:
            row.guide.collected()

    def _seat(self, row: Row, block_ids: Sequence[int]) -> None:
        row.slot = self._take_slot()
        self._rows[row.attempt] = row
        self._append(row, block_ids)
        self.contexts[row.slot] = row.num_computed
        self.next_tokens[row.slot] = row.token_ids[-1]

    def _history(self, row: Row) -> Tensor:
        most = row.num_prompt_tokens + row.sampling.max_tokens + 1
        history = torch.zeros(max(most, len(row.token_ids)), dtype=torch.int64)
        history[: len(row.token_ids)] = torch.tensor(row.token_ids, dtype=torch.int64)
        return history.to(self._device, non_blocking=True)

    def _check_join(self, join: RowJoin, token_ids: "array[int]") -> None:
        if join.attempt in self._rows:
            raise StepFailed(f"row {join.attempt} joins and is resident already")
        if not 0 <= join.num_computed < len(token_ids):
            raise StepFailed(f"row {join.attempt} joins with {join.num_computed} of {len(token_ids)} tokens computed")
        if not 0 < join.num_prompt_tokens <= len(token_ids):
            raise StepFailed(f"row {join.attempt} has {join.num_prompt_tokens} prompt tokens among {len(token_ids)}")
        if max(token_ids) >= self._vocab_size:
            last = self._vocab_size - 1
            raise StepFailed(f"row {join.attempt} holds token {max(token_ids)}; the vocabulary ends at {last}")
        if join.copied_from is not None and not 0 <= join.copied_from < self._num_blocks:
            raise StepFailed(f"row {join.attempt} copies block {join.copied_from} of {self._num_blocks}")
        self._check_blocks(join)

    def _check_blocks(self, change: RowJoin | RowGrowth) -> None:
        ids = change.block_ids
        if len(ids) != len(change.generations):
            raise StepFailed(f"row {change.attempt} has {len(ids)} blocks and {len(change.generations)} generations")
        if ids and not (min(ids) >= 0 and max(ids) < self._num_blocks):
            raise StepFailed(f"row {change.attempt} names blocks {min(ids)} to {max(ids)} of {self._num_blocks}")

    def _append(self, row: Row, block_ids: Sequence[int]) -> None:
        end, most = row.num_blocks + len(block_ids), self.tables.shape[1]
        if end > most:
            raise StepFailed(f"row {row.attempt} would hold {end} blocks; the longest row holds {most}")
        if block_ids and not row.num_blocks:
            self.tables[row.slot].fill_(block_ids[0])
        if block_ids:
            ids = torch.tensor(block_ids, dtype=torch.int64)
            self.tables[row.slot, row.num_blocks : end] = ids.to(self._device, non_blocking=True)
        row.num_blocks = end

    def _take_slot(self) -> int:
        if not self._free_slots:
            num = len(self.tables)
            self.tables = torch.cat((self.tables, torch.zeros_like(self.tables)))
            self.contexts = torch.cat((self.contexts, torch.zeros_like(self.contexts)))
            self.next_tokens = torch.cat((self.next_tokens, torch.zeros_like(self.next_tokens)))
            self._free_slots = list(range(num, 2 * num))
        return self._free_slots.pop()
