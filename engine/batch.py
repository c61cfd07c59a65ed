"""Lays a step out: which lines the model computes, whose logits are wanted, and what is to be made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.lines import Chunk, Lines
from engine.rows import Integers, Row, Rows


@dataclass(frozen=True, slots=True)
class DueRow:
    """A row that advances by `num_tokens`, and by as many of `drafts` as the model confirms."""

    row: Row
    num_tokens: int
    drafts: tuple[int, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether its last known token is computed, so that the next one is drawn."""
        return self.row.num_computed + self.num_tokens == self.row.num_known

    @property
    def end(self) -> int:
        """One past the last position that is computed."""
        return self.row.num_computed + self.num_tokens + len(self.drafts)


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row that samples: once after each of `1 + len(drafts)` consecutive logits from line `first` of them."""

    row: Row
    first: int
    position: int
    drafts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row whose prompt tokens are scored: `token_ids`, at `position` and on, by the logits from line `first` on."""

    row: Row
    first: int
    position: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. `wanted` are the lines whose logits are wanted, None: all of them.

    `is_steady` says that every line samples, and that no row has more than one: the shape of pure decoding.
    """

    lines: Lines
    wanted: Tensor | None
    max_wanted_context: int
    sampled: tuple[SampledRow, ...]
    scored: tuple[ScoredRow, ...]
    is_steady: bool


class Layout:
    """Makes batches from rows.

    Owns: the slots of the last purely decoding step, which serve again as long as the same rows decode.
    """

    def __init__(self, rows: Rows, block_size: int, device: torch.device) -> None:
        self._rows = rows
        self._block_size = block_size
        self._device = device
        self._steady_key: tuple[int, ...] = ()
        self._steady_slots = torch.empty(0, dtype=torch.int64)

    def batch(self, due: Sequence[DueRow]) -> Batch:
        """Lay out a step; rows are as before it. Single lines come first and by length, so that groups pad little."""
        single = sorted((each for each in due if each.num_tokens == 1), key=lambda each: each.row.num_computed)
        if len(single) == len(due) and all(each.samples and not each.drafts for each in single):
            return self._steady(single)
        return self._mixed(single, [each for each in due if each.num_tokens > 1])

    def _steady(self, due: Sequence[DueRow]) -> Batch:
        """All lines decode: everything is on the device already."""
        rows, key = self._rows, tuple(each.row.slot for each in due)
        if key != self._steady_key:
            self._steady_key, self._steady_slots = key, rows.slots([each.row for each in due])
        slots = self._steady_slots
        lines = self._lines(rows.next_tokens[slots], rows.contexts[slots], slots, len(due), (), due[-1].end)
        sampled = tuple(SampledRow(each.row, line, each.end, ()) for line, each in enumerate(due))
        return Batch(lines, None, lines.max_context, sampled, (), True)

    def _mixed(self, single: Sequence[DueRow], chunked: Sequence[DueRow]) -> Batch:
        due = (*single, *chunked)
        lengths = np.array([each.end - each.row.num_computed for each in due])
        starts = np.concatenate(([0], np.cumsum(lengths)))
        positions = np.concatenate([np.arange(each.row.num_computed, each.end) for each in due])
        slots = np.repeat([each.row.slot for each in due], lengths)
        num_single = int(starts[len(single)])
        chunks = tuple(
            Chunk(int(start), int(start + length), each.row.slot, each.row.num_computed)
            for each, start, length in zip(due, starts, lengths, strict=False)
        )[len(single) :]
        lines = self._lines(
            self._token_ids(due, starts),
            torch.from_numpy(positions).to(self._device, non_blocking=True),
            torch.from_numpy(slots).to(self._device, non_blocking=True),
            num_single,
            chunks,
            max((each.end for each in single), default=0),
        )
        return self._wanting(lines, due, starts)

    def _lines(
        self, token_ids: Tensor, positions: Tensor, slots: Tensor, num_single: int, chunks: tuple[Chunk, ...], most: int
    ) -> Lines:
        tables = self._rows.tables
        blocks = positions // self._block_size
        offsets = positions - blocks * self._block_size
        return Lines(token_ids, positions, slots, tables, tables[slots, blocks], offsets, num_single, chunks, most)

    def _token_ids(self, due: Sequence[DueRow], starts: Integers) -> Tensor:
        """What the host knows, then what only the device does."""
        known: list[int] = []
        for each in due:
            row, num_missing = each.row, len(known)
            known += row.token_ids[row.num_computed : row.num_computed + each.num_tokens]
            known += [0] * (num_missing + each.num_tokens - len(known))
            known += each.drafts
        token_ids = torch.tensor(known, dtype=torch.int64).to(self._device, non_blocking=True)
        pending = [(int(start), each.row) for each, start in zip(due, starts, strict=False) if each.row.num_pending]
        if pending:
            at = torch.tensor([line for line, _ in pending], dtype=torch.int64).to(self._device, non_blocking=True)
            token_ids[at] = self._rows.next_tokens[self._rows.slots([row for _, row in pending])]
        return token_ids

    def _wanting(self, lines: Lines, due: Sequence[DueRow], starts: Integers) -> Batch:
        wanted: list[int] = []
        sampled, scored, most = [], [], 0
        for each, start in zip(due, starts.tolist(), strict=False):
            last, targets = start + each.num_tokens - 1, _scored_tokens(each)
            if targets:
                scored.append(ScoredRow(each.row, len(wanted), each.row.num_computed + 1, targets))
                wanted += range(start, start + len(targets))
            if each.samples:
                sampled.append(SampledRow(each.row, len(wanted), each.end - len(each.drafts), each.drafts))
                wanted += range(last, last + 1 + len(each.drafts))
            if targets or each.samples:
                most = max(most, each.end)
        return Batch(lines, self._wanted(wanted, len(lines)), most, tuple(sampled), tuple(scored), False)

    def _wanted(self, wanted: list[int], num_lines: int) -> Tensor | None:
        if len(wanted) == num_lines:
            return None
        return torch.tensor(wanted, dtype=torch.int64).to(self._device, non_blocking=True)


def _scored_tokens(due: DueRow) -> tuple[int, ...]:
    """Prompt tokens that follow the tokens which this step computes, where their scores are asked for."""
    row = due.row
    if row.sampling.prompt_logprobs is None:
        return ()
    first, last = row.num_computed + 1, min(row.num_computed + due.num_tokens + 1, row.num_prompt_tokens)
    return tuple(row.token_ids[first:last])
