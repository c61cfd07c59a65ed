"""An executor that only counts: where every row stands, and whether what it is told is consistent. No bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from core.ids import AttemptId, RequestId, request_of
from core.request import num_packed
from core.step import RowGrowth, RowJoin, StepPlan, StepResult

END_TOKEN = 1
"""Ends every answer, at its true length."""

WORD = 0
"""Every other token."""

DIGEST = bytes(16)


@dataclass(slots=True, eq=False)
class CountedRow:
    """A resident row: `num_computed` of `num_known` tokens have KV; token number `end` is the last, blocks reach for
    `room` tokens."""

    attempt: AttemptId
    num_computed: int
    num_known: int
    end: int
    room: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a step is about to do: chunks as (tokens, tokens before), and rows that decode with their contexts' sum."""

    chunks: tuple[tuple[int, int], ...]
    num_rows: int
    row_context: int


class CountingExecutor:
    """Runs plans in the order given.

    The tokens of prompts are not there (`Request.token_ids` is empty): a row that joins brings its answer only.
    Owns: the rows. Invariant: a plan never moves a row beyond its known tokens or its blocks.
    """

    def __init__(self, block_size: int, output_tokens: Mapping[RequestId, int]) -> None:
        self._block_size = block_size
        self._output_tokens = output_tokens
        self._rows: dict[AttemptId, CountedRow] = {}
        self._running: list[CountedRow] = []

    @property
    def num_rows(self) -> int:
        """Rows resident now."""
        return len(self._rows)

    def begin(self, plan: StepPlan) -> Ahead:
        """Rows leave, join and grow; what the step will do."""
        rows, size = self._rows, self._block_size
        for attempt in plan.left:
            rows.pop(attempt, None)
        for join in plan.joined:
            self._join(join)
        for growth in plan.grown:
            self._grow(growth)
        assert not plan.saved and not plan.restored and not plan.max_drafts, "nothing is saved or guessed here"
        self._running = [rows[attempt] for attempt in plan.attempts]
        chunks: list[tuple[int, int]] = []
        num_rows = row_context = 0
        for row, num_tokens in zip(self._running, plan.num_tokens, strict=True):
            before = row.num_computed
            assert 0 < num_tokens <= row.num_known - before, f"{row} advances {num_tokens}"
            assert before + num_tokens <= row.room, f"{row} advances {num_tokens} beyond its blocks of {size}"
            if num_tokens == 1 and before + 1 == row.num_known:
                num_rows += 1
                row_context += before
            else:
                chunks.append((num_tokens, before))
        return Ahead(tuple(chunks), num_rows, row_context)

    def num_runs(self, most: int) -> int:
        """How often the plan can be run until an answer is complete, at most so many times."""
        return min(most, *(row.end - row.num_known for row in self._running))

    def finish(self, plan: StepPlan, duration_s: float, num_runs: int = 1) -> StepResult:
        """Rows advance; those whose known tokens are all computed sample."""
        if num_runs > 1:
            return self._finish_runs(plan, duration_s, num_runs)
        attempts: list[AttemptId] = []
        token_ids: list[int] = []
        for row, num_tokens in zip(self._running, plan.num_tokens, strict=True):
            row.num_computed += num_tokens
            if row.num_computed == row.num_known:
                row.num_known += 1
                attempts.append(row.attempt)
                token_ids.append(END_TOKEN if row.num_known >= row.end else WORD)
        digests = (DIGEST,) * len(plan.seal)
        return StepResult(plan.step, tuple(attempts), tuple(token_ids), plan.seal, digests, duration_s)

    def _finish_runs(self, plan: StepPlan, duration_s: float, num_runs: int) -> StepResult:
        attempts: list[AttemptId] = []
        token_ids: list[int] = []
        for row in self._running:
            row.num_computed += num_runs
            row.num_known += num_runs
            assert row.num_computed <= row.room and row.num_known <= row.end, f"{row} was run {num_runs} times"
            attempts += [row.attempt] * num_runs
            token_ids += [WORD] * (num_runs - 1)
            token_ids.append(END_TOKEN if row.num_known == row.end else WORD)
        return StepResult(plan.step, tuple(attempts), tuple(token_ids), (), (), duration_s, num_runs=num_runs)

    def _join(self, join: RowJoin) -> None:
        assert join.attempt not in self._rows, f"{join.attempt} joins and is resident already"
        num_known = join.num_prompt_tokens + num_packed(join.token_ids)
        end = join.num_prompt_tokens + self._output_tokens[request_of(join.attempt)]
        assert 0 <= join.num_computed < num_known, f"{join.attempt} joins at {join.num_computed} of {num_known}"
        room = len(join.block_ids) * self._block_size
        self._rows[join.attempt] = CountedRow(join.attempt, join.num_computed, num_known, end, room)

    def _grow(self, growth: RowGrowth) -> None:
        self._rows[growth.attempt].room += len(growth.block_ids) * self._block_size
