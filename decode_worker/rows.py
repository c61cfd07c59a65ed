"""All rows of a decode machine, and the steps that hold them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from core.commands import Command, Tell
from core.events import AttemptEnd, AttemptFinished
from core.ids import SCHEDULER, AttemptId, NodeId
from core.lifecycle import DecodeState
from decode_worker.batching import DecodeRow
from engine.blocks import BlockPool


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows that one step holds: those that run, in the plan's order, are copied out, only come back, or are
    sealed."""

    running: list[DecodeRow] = field(default_factory=list)
    saved: list[DecodeRow] = field(default_factory=list)
    restored: list[DecodeRow] = field(default_factory=list)
    leaving: list[DecodeRow] = field(default_factory=list)


class Rows:
    """Keeps rows from their coming to their end.

    Owns: the rows, oldest first, their block tables, and which step holds which of them. `num_offline` of the rows are
    of the offline class.
    Invariant: a row's blocks go back only when no step that could touch them is in flight.
    """

    def __init__(self, node: NodeId, pool: BlockPool) -> None:
        self._node = node
        self._pool = pool
        self._rows: dict[AttemptId, DecodeRow] = {}
        self._in_step: dict[int, StepRows] = {}
        self._finished_step = -1
        self._left: list[AttemptId] = []
        self.num_offline = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[DecodeRow]:
        return iter(self._rows.values())

    def __contains__(self, attempt: AttemptId) -> bool:
        return attempt in self._rows

    def __getitem__(self, attempt: AttemptId) -> DecodeRow:
        return self._rows[attempt]

    def get(self, attempt: AttemptId) -> DecodeRow | None:
        """The row of an attempt, if it is here."""
        return self._rows.get(attempt)

    @property
    def attempts(self) -> tuple[AttemptId, ...]:
        """All that are here, oldest first."""
        return tuple(self._rows)

    @property
    def num_saved_blocks(self) -> int:
        """Blocks in host memory, or on their way there."""
        return sum(row.num_saved for row in self._rows.values())

    def add(self, row: DecodeRow) -> None:
        """A new row; it is the youngest."""
        assert row.id not in self._rows, f"{row.id} is here already"
        self._rows[row.id] = row
        self.num_offline += row.request.is_offline

    def take_out(self, row: DecodeRow) -> None:
        """It is in no step, and its blocks are another's from now on; the executor keeps it."""
        assert not self.is_in_flight(row) and row.end is None, f"{row.id} is taken out of a step"
        del self._rows[row.id]
        self.num_offline -= row.request.is_offline

    def take_left(self) -> tuple[AttemptId, ...]:
        """Rows that the executor may forget, once."""
        left, self._left = tuple(self._left), []
        return left

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def open_step(self, step: int, rows: StepRows) -> None:
        """These rows are in a step from now on."""
        if rows.running or rows.saved or rows.restored or rows.leaving:
            self._in_step[step] = rows

    def close_step(self, step: int) -> StepRows:
        """A step is over; what it held, in the states in which it was planned or was ended since."""
        self._finished_step = step
        rows = self._in_step.pop(step, None) or StepRows()
        for row in rows.running:
            row.num_in_flight -= 1
        return rows

    def is_in_flight(self, row: DecodeRow) -> bool:
        """Whether a step may still touch its blocks."""
        return row.last_step > self._finished_step

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def end(self, row: DecodeRow, end: AttemptEnd) -> list[Command]:
        """A row is over; the first reason counts."""
        if row.end is None:
            row.end = end
        return self.settle(row)

    def settle(self, row: DecodeRow) -> list[Command]:
        """Give the blocks back and report, or wait in ENDING for the step that holds them."""
        assert row.end is not None
        if self.is_in_flight(row):
            if row.state is not DecodeState.ENDING:
                row.state = DecodeState.ENDING
                self._pool.quarantine(row.table)
            return []
        self._pool.free(row.table)
        del self._rows[row.id]
        self.num_offline -= row.request.is_offline
        self._left.append(row.id)
        return [Tell(SCHEDULER, AttemptFinished(row.id, self._node, row.end))]

    def check(self) -> None:
        """Asserts that rows hold what their states say."""
        assert self.num_offline == sum(row.request.is_offline for row in self._rows.values()), "the offline class"
        for row in self._rows.values():
            is_out = row.state is DecodeState.SAVED and not self.is_in_flight(row)
            assert not (is_out and row.table), f"{row.id} is saved and holds {len(row.table)} blocks"
            assert (row.to is not None) == (row.state is DecodeState.LEAVING) or row.end, f"{row.id} goes to {row.to}"
            assert row.num_told <= len(row.table), f"{row.id}: {row.num_told} of {len(row.table)} blocks were told"
            assert (row.num_saved > 0) == (row.state is DecodeState.SAVED) or row.end, (
                f"{row.id}: {row.num_saved} saved"
            )
            assert 0 <= row.num_in_flight <= 1 or not row.num_drafts, f"{row.id} runs on behind its drafts"
