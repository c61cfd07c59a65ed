"""The decode part of the next step: who comes back, who runs, who gives way, and who may guess."""

from dataclasses import dataclass, field

from core.commands import Command
from core.events import AttemptEnd
from core.ids import AttemptId
from core.lifecycle import DecodeState
from decode_worker.batching import DecodeRow, DecodeRows, add_row, grow, grow_for_drafts
from decode_worker.config import DecodeConfig
from decode_worker.drafts import DraftPolicy, num_without
from decode_worker.leaving import add_seal
from decode_worker.preemption import next_victim
from decode_worker.rows import Rows, StepRows
from decode_worker.saving import may_save, num_needed, restore, save
from engine.blocks import BlockPool


@dataclass(slots=True)
class _Next:
    """One step in the making. `held_back` are not planned, so that they can be saved once their last step is over.

    Of `num_running` rows `num_without` did not guess when they last ran.
    """

    step: int
    rows: DecodeRows = field(default_factory=DecodeRows)
    commands: list[Command] = field(default_factory=list)
    saved: list[DecodeRow] = field(default_factory=list)
    restored: list[DecodeRow] = field(default_factory=list)
    held_back: set[AttemptId] = field(default_factory=set)
    is_short: bool = False
    num_running: int = 0
    num_without: int = 0


class Planner:
    """Puts rows into steps, and sees to it that each has its blocks.

    Owns: nothing but its counters; rows and blocks belong to the machine. `is_short`: when it last planned, a row
    lacked blocks, or was still out of the pool: what becomes free is theirs.
    """

    def __init__(self, config: DecodeConfig, pool: BlockPool, rows: Rows) -> None:
        self._config = config
        self._pool = pool
        self._rows = rows
        self._policy = DraftPolicy(config.max_draft_tokens, config.costs, config.overlaps)
        self.is_short = False
        self.num_preempted = 0
        self.num_saved = 0
        self.num_restored = 0

    def next_rows(
        self, max_rows: int, step: int, now: float, *, with_offline: bool = True
    ) -> tuple[DecodeRows, list[Command]]:
        """Take up to `max_rows` rows into step number `step`, one token each and drafts behind it; may preempt.

        Without `with_offline` rows of that class run only where no others do.
        """
        if not self._rows:
            self.is_short = False
            return DecodeRows(), []
        plan = _Next(step)
        self._restore(plan)
        self._count(plan)
        ready = self._with_room(plan, self._wanting(plan, max_rows, with_offline))
        for row, num_drafts in zip(ready, self._drafts(plan, ready), strict=True):
            add_row(plan.rows, row, num_drafts, step, self._pool)
            row.started_at = now if row.started_at is None else row.started_at
        only_restored = [row for row in plan.restored if row.last_turn != step]
        self._rows.open_step(step, StepRows(ready, plan.saved, only_restored, self._seal(plan)))
        self.is_short = plan.is_short or self._is_awaited()
        if self._config.max_runs > 1:
            plan.rows.max_runs = self._max_runs(plan.rows, ready)
        return plan.rows, plan.commands

    def _max_runs(self, rows: DecodeRows, ready: list[DecodeRow]) -> int:
        """How often all rows may go on by one token: while each has room in its blocks, and none is on its way out."""
        is_settled = not (self.is_short or rows.saved or rows.restored or rows.seal) and len(ready) == len(self._rows)
        if not is_settled or not ready:
            return 1
        size = self._config.block_size
        more = min(
            min(len(row.table) * size - row.num_context, row.request.sampling.max_tokens - row.num_output - 1)
            for row in ready
        )
        return 1 + min(more, self._config.max_runs - 1)

    # ── who runs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _restore(self, plan: _Next) -> None:
        """Saved rows return, oldest first; none overtakes another."""
        for row in [row for row in self._rows if row.state is DecodeState.SAVED]:
            needed = num_needed(row, self._rows, self._config.block_size)
            if self._rows.is_in_flight(row) or self._pool.num_available < needed:
                break
            restore(plan.rows, row, plan.step, self._pool)
            plan.restored.append(row)
            self.num_restored += 1

    def _seal(self, plan: _Next) -> list[DecodeRow]:
        """Rows that leave and whose last step is over."""
        due = [row for row in self._rows if row.state is DecodeState.LEAVING and not self._rows.is_in_flight(row)]
        for row in due:
            add_seal(plan.rows, row, plan.step, self._config.block_size)
        return due

    def _wanting(self, plan: _Next, max_rows: int, with_offline: bool) -> list[DecodeRow]:
        """Rows for the next step, oldest first; of too many those that have waited longest: none falls silent, but for
        those of the offline class, which run where the others leave room.

        A row that will guess waits for its last result: what follows cannot be guessed before.
        """
        wanting = [row for row in self._rows if row.wants_token]
        if self._config.max_draft_tokens:
            wanting = [row for row in wanting if not row.num_in_flight or not self._wish(plan, row)]
        if not with_offline and self._rows.num_offline:
            wanting = [row for row in wanting if not row.request.is_offline] or wanting
        if len(wanting) > max_rows:
            wanting = sorted(wanting, key=lambda row: (row.request.is_offline, row.last_turn))[:max_rows]
        return wanting

    def _with_room(self, plan: _Next, wanting: list[DecodeRow]) -> list[DecodeRow]:
        """Those that have blocks for one more token when all have asked; others may have given way to them."""
        ready = []
        for row in wanting:
            if row.is_running and row.id not in plan.held_back and self._has_room(plan, row):
                ready.append(row)
        return [row for row in ready if row.is_running and row.id not in plan.held_back]

    def _has_room(self, plan: _Next, row: DecodeRow) -> bool:
        while not grow(row, self._pool, self._config.block_size):
            plan.is_short = True
            if self._blocks_will_come(plan):
                return False
            victim = next_victim(self._rows)
            assert victim is not None
            self._give_way(plan, victim)
            if victim is row:
                return False
        return True

    def _is_awaited(self) -> bool:
        """Whether a saved row waits for what others of this machine will give back.

        Where none of them holds blocks, lent ones must come back, and the reader may wait for an admission here.
        """
        is_out = any(row.state is DecodeState.SAVED for row in self._rows)
        return is_out and any(row.table for row in self._rows)

    # ── who gives way ────────────────────────────────────────────────────────────────────────────────────────────────

    def _give_way(self, plan: _Next, victim: DecodeRow) -> None:
        """To host memory, as soon as no step runs it, or back to a prefill with all that it has answered."""
        if not may_save(victim, self._rows.num_saved_blocks, self._pool, self._config):
            self.num_preempted += 1
            plan.commands += self._rows.end(victim, AttemptEnd.PREEMPTED)
        elif self._rows.is_in_flight(victim):
            plan.held_back.add(victim.id)
        else:
            self.num_saved += 1
            save(plan.rows, victim, plan.step, self._pool)
            plan.saved.append(victim)

    def _blocks_will_come(self, plan: _Next) -> bool:
        """Whether blocks are held only until a step ends, by rows that are over or on their way out, or to be copied
        from: better to wait for them than to preempt."""
        if plan.held_back or self._pool.num_held > 0:
            return True
        return any(row.end is not None or (row.state is DecodeState.SAVED and row.table) for row in self._rows)

    # ── who guesses ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _drafts(self, plan: _Next, ready: list[DecodeRow]) -> list[int]:
        """Drafts for each row, with blocks for all. They take only what leaves a block for every row to grow into."""
        if not self._config.max_draft_tokens:
            return [0] * len(ready)
        drafts = []
        for row in ready:
            wish = self._wish(plan, row)
            num_spare = 0 if plan.is_short else max(0, self._pool.num_available - len(self._rows))
            drafts.append(grow_for_drafts(row, wish, num_spare, self._pool, self._config.block_size) if wish else 0)
        return drafts

    def _count(self, plan: _Next) -> None:
        if self._config.max_draft_tokens:
            draftings = [row.drafting for row in self._rows if row.is_running]
            plan.num_running, plan.num_without = len(draftings), num_without(draftings)

    def _wish(self, plan: _Next, row: DecodeRow) -> int:
        """Drafts that would pay, inside the limits of answer and model."""
        others_without = plan.num_without - num_without((row.drafting,))
        wish = self._policy.wish(row.drafting, plan.num_running, others_without)
        left = row.request.sampling.max_tokens - row.num_output - row.num_in_flight - 1
        return max(0, min(wish, left, self._config.max_model_len - row.num_context - 1))
