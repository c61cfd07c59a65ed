"""A stand-in for the executor: the next token is a checksum of all KV that the attempt attends to. Pure, no tensors.

What it can catch: a slot that is stale, missing, foreign, misplaced, written twice or read from a block that was
reused; KV that was handed over in part or in another order, or that was copied or saved from a block which had another
owner by then; a sampler that depends on anything but seed, choice and position; a row that stands elsewhere than the
machines believe, above all after drafts that were confirmed in part. Each changes every later token of the attempt: a
slot's value is mixed from its predecessor as memory gives it back, and a token from every slot. Blocks that are reused
under a running step are seen at once, by their generation.

What it cannot catch: wrong arithmetic, rounding that depends on the batch, a wrong layout inside a block, real time.
It takes no notice of formats: where an answer stands in one follows from tokens that the machines handle anyway, and
its own have no text. `tests/engine/test_structured.py` has the same moves with real executors.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from core.errors import StepFailed
from core.ids import AttemptId
from core.request import SamplingParams, unpack_tokens
from core.step import PromptLogprobs, RowGrowth, RowJoin, StepPlan, StepResult, TokenLogprobs
from engine.fake_memory import SLOT_BYTES, FakeMemory
from engine.fake_truth import BEFORE_FIRST, VOCAB_SIZE, sampled_token, scores_of, slot_value


@dataclass(slots=True)
class _Row:
    token_ids: list[int]
    num_computed: int
    num_prompt_tokens: int
    sampling: SamplingParams
    table: list[int]
    generations: list[int]


@dataclass(frozen=True, slots=True)
class _Copy:
    """The first bytes of a block, as they were when the step began."""

    source: int
    data: bytes


class FakeExecutor:
    """Runs plans in the order given, as `engine.executor.Executor` does.

    Owns: the rows, saved ones too, and the memory's bytes while a step runs.
    Invariant: rows of a failed step are forgotten, so a plan made ahead of the failure cannot run on half a state. A
    row that failed alone and that such a plan names is reported again, and harms no other.

    A step may be run in parts, to let other things happen meanwhile: `begin` (rows change, generations are written),
    `advance` for each row, `finish` (rows are copied out: until then their blocks must be theirs).
    """

    def __init__(self, memory: FakeMemory, vocab_size: int = VOCAB_SIZE) -> None:
        self.memory = memory
        self._vocab_size = vocab_size
        self._rows: dict[AttemptId, _Row] = {}
        self._saved: dict[AttemptId, tuple[_Row, bytes]] = {}
        self._failed: set[AttemptId] = set()
        self._leaving: dict[AttemptId, _Row] = {}
        self._copies: list[_Copy] = []
        self._max_drafts: dict[AttemptId, int] = {}
        self._num_tried: dict[AttemptId, int] = {}
        self._won: dict[AttemptId, list[int]] = {}
        self._scored: list[PromptLogprobs] = []

    def run(self, plan: StepPlan) -> StepResult:
        """Run one step. Raises StepFailed when it cannot be run; nothing of it may be used then."""
        try:
            self.begin(plan)
            for attempt, num_tokens in zip(plan.attempts, plan.num_tokens, strict=True):
                self.advance(attempt, num_tokens)
        except StepFailed:
            self.forget(plan)
            raise
        return self.finish(plan, duration_s=0.0)

    @property
    def num_rows(self) -> int:
        """Rows resident now."""
        return len(self._rows)

    @property
    def num_saved_blocks(self) -> int:
        """Blocks in host memory."""
        return sum(len(row.table) for row, _ in self._saved.values())

    @property
    def sampled(self) -> tuple[AttemptId, ...]:
        """Rows that have sampled in the running step."""
        return tuple(self._won)

    def begin(self, plan: StepPlan) -> None:
        """Rows leave, join and grow; every generation is in its block's header before any byte is written."""
        self._won, self._num_tried, self._scored, self._copies, self._leaving = {}, {}, [], [], {}
        self._max_drafts = dict(zip(plan.attempts, plan.max_drafts, strict=True)) if plan.max_drafts else {}
        for attempt in plan.left:
            self._drop(attempt)
        for attempt in plan.saved:
            self._leaving[attempt] = self._row(attempt)
            del self._rows[attempt]
        for join in plan.joined:
            self._join(join)
        for growth in plan.restored:
            self._restore(growth)
        for growth in plan.grown:
            if growth.attempt not in self._failed:
                row = self._row(growth.attempt)
                self._append(row, growth.block_ids, growth.generations)
        for attempt, num_tokens in zip(plan.attempts, plan.num_tokens, strict=True):
            if attempt not in self._failed:
                self._check_due(attempt, num_tokens)

    def advance(self, attempt: AttemptId, num_tokens: int) -> None:
        """Write the KV of a row's next tokens; where they were the last known ones, sample."""
        if attempt in self._failed:
            return
        row = self._row(attempt)
        self._check_generations(attempt, row)
        for position in range(row.num_computed, row.num_computed + num_tokens):
            self._put(row, row.token_ids[position], position)
        self._score(attempt, row, num_tokens)
        row.num_computed += num_tokens
        if row.num_computed == len(row.token_ids):
            self._won[attempt] = self._sample(attempt, row)

    def finish(self, plan: StepPlan, duration_s: float, failing: Collection[AttemptId] = ()) -> StepResult:
        """What the step produced: sampled tokens, which now are known, and digests over what memory holds.

        Of the rows that sampled, those in `failing` did not.
        """
        self._copy_out()
        for attempt in failing:
            del self._won[attempt], self._rows[attempt]
            self._failed.add(attempt)
        for attempt, won in self._won.items():
            row = self._rows[attempt]
            row.token_ids += won
            row.num_computed += len(won) - 1
        won_by = [(attempt, token) for attempt in plan.attempts for token in self._won.get(attempt, ())]
        return StepResult(
            plan.step,
            tuple(attempt for attempt, _ in won_by),
            tuple(token for _, token in won_by),
            plan.seal,
            tuple(self.memory.digest(block) for block in plan.seal),
            duration_s,
            self._logprobs(won_by),
            tuple(scored for scored in self._scored if scored.attempt not in self._failed),
            tuple(self._num_tried.get(attempt, 0) for attempt in plan.attempts) if plan.max_drafts else (),
            tuple(attempt for attempt in plan.attempts if attempt in self._failed),
        )

    def forget(self, plan: StepPlan) -> None:
        """Forget the rows of a step that failed."""
        joined, restored = (join.attempt for join in plan.joined), (growth.attempt for growth in plan.restored)
        for attempt in (*plan.attempts, *plan.saved, *joined, *restored):
            self._rows.pop(attempt, None)
            self._saved.pop(attempt, None)

    def context_tokens(self, plan: StepPlan) -> int:
        """Tokens that the plan's rows attend to before it begins."""
        joined = {join.attempt: join.num_computed for join in plan.joined}
        return sum(
            joined[attempt] if attempt in joined else self._rows[attempt].num_computed
            for attempt in plan.attempts
            if attempt in joined or attempt in self._rows
        )

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sample(self, attempt: AttemptId, row: _Row) -> list[int]:
        """The next token, and those that follow it as far as drafts guess them. It knows the truth, so it chooses how
        many are right: every number of every number comes up. What is wrong is written all the same."""
        won = [self._next_token(row, row.num_computed)]
        num_tried, num_right = _guesses(row, self._max_drafts.get(attempt, 0))
        self._num_tried[attempt] = num_tried
        for number in range(num_tried):
            position = row.num_computed + number
            if number < num_right:
                self._put(row, won[-1], position)
                won.append(self._next_token(row, position + 1))
            else:
                self._put(row, (won[-1] + 1) % self._vocab_size, position)
        return won

    def _next_token(self, row: _Row, position: int) -> int:
        return sampled_token(self.memory.gather(row.table, position), row.sampling, position, self._vocab_size)

    def _put(self, row: _Row, token_id: int, position: int) -> None:
        slots, size, table, at = self.memory.slots, self.memory.block_size, row.table, position - 1
        before = slots[table[at // size] * size + at % size] if position else BEFORE_FIRST
        slots[table[position // size] * size + position % size] = slot_value(before, token_id, position)

    def _score(self, attempt: AttemptId, row: _Row, num_tokens: int) -> None:
        """Scores of the prompt tokens that follow those which were computed."""
        num_top = row.sampling.prompt_logprobs
        first, end = row.num_computed + 1, min(row.num_computed + num_tokens + 1, row.num_prompt_tokens)
        if num_top is not None and first < end:
            scores = tuple(scores_of(token_id, num_top) for token_id in row.token_ids[first:end])
            self._scored.append(PromptLogprobs(attempt, first, scores))

    def _logprobs(self, won_by: list[tuple[AttemptId, int]]) -> tuple[TokenLogprobs | None, ...]:
        tops = {attempt: self._rows[attempt].sampling.logprobs for attempt, _ in won_by}
        if all(num_top is None for num_top in tops.values()):
            return ()
        asked = ((tops[attempt], token) for attempt, token in won_by)
        return tuple(None if num_top is None else scores_of(token, num_top) for num_top, token in asked)

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _join(self, join: RowJoin) -> None:
        token_ids = list(unpack_tokens(join.token_ids))
        if join.attempt in self._rows:
            raise StepFailed(f"row {join.attempt} joins and is resident already")
        if not 0 <= join.num_computed < len(token_ids):
            raise StepFailed(f"row {join.attempt} joins with {join.num_computed} of {len(token_ids)} tokens computed")
        if not 0 < join.num_prompt_tokens <= len(token_ids):
            raise StepFailed(f"row {join.attempt}: {join.num_prompt_tokens} of {len(token_ids)} tokens are prompt")
        row = _Row(token_ids, join.num_computed, join.num_prompt_tokens, join.sampling, [], [])
        self._append(row, join.block_ids, join.generations)
        self._rows[join.attempt] = row
        if join.copied_from is not None:
            self._copy_in(row, join.copied_from)

    def _copy_in(self, row: _Row, source: int) -> None:
        """Copy on write, at the beginning of the step; what is copied must be there, and stay to its end."""
        place, num_tokens = divmod(row.num_computed, self.memory.block_size)
        if not 0 <= source < self.memory.num_blocks or source in row.table or not num_tokens:
            raise StepFailed(f"{num_tokens} tokens cannot be copied from block {source} into table {row.table}")
        data = bytes(self.memory.read(source, 0, num_tokens * SLOT_BYTES))
        self.memory.write(row.table[place], 0, data)
        self._copies.append(_Copy(source, data))

    def _copy_out(self) -> None:
        """Save what leaves, at the end of the step, and look whether what was copied from is still the same."""
        for attempt, row in self._leaving.items():
            self._check_generations(attempt, row)
            self._saved[attempt] = (row, self.memory.gather(row.table, len(row.table) * self.memory.block_size))
        for copy in self._copies:
            found = self.memory.read(copy.source, 0, len(copy.data))
            assert found == copy.data, f"block {copy.source} was reused under a step that copies from it"

    def _restore(self, growth: RowGrowth) -> None:
        if growth.attempt not in self._saved:
            raise StepFailed(f"row {growth.attempt} is restored and was not saved")
        row, data = self._saved.pop(growth.attempt)
        if len(growth.block_ids) != len(row.table):
            raise StepFailed(f"row {growth.attempt} comes back to {len(growth.block_ids)} of {len(row.table)} blocks")
        row.table, row.generations = [], []
        self._append(row, growth.block_ids, growth.generations)
        self._rows[growth.attempt] = row
        size = self.memory.block_bytes
        for place, block in enumerate(row.table):
            self.memory.write(block, 0, data[place * size : (place + 1) * size])

    def _drop(self, attempt: AttemptId) -> None:
        self._rows.pop(attempt, None)
        self._saved.pop(attempt, None)
        self._failed.discard(attempt)

    def _append(self, row: _Row, block_ids: Sequence[int], generations: Sequence[int]) -> None:
        for block, generation in zip(block_ids, generations, strict=True):
            if not 0 <= block < self.memory.num_blocks:
                raise StepFailed(f"block {block} is not in the pool of {self.memory.num_blocks}")
            if generation < self.memory.generations[block]:
                raise StepFailed(
                    f"block {block} would go back from generation {self.memory.generations[block]} to {generation}"
                )
            self.memory.generations[block] = generation
        row.table += block_ids
        row.generations += generations

    def _row(self, attempt: AttemptId) -> _Row:
        row = self._rows.get(attempt)
        if row is None:
            raise StepFailed(f"row {attempt} is not resident")
        return row

    def _check_due(self, attempt: AttemptId, num_tokens: int) -> None:
        row = self._row(attempt)
        end, known = row.num_computed + num_tokens, len(row.token_ids)
        if num_tokens < 1 or end > known:
            raise StepFailed(
                f"row {attempt} cannot advance {num_tokens} from {row.num_computed}: {known} tokens are known"
            )
        end += self._max_drafts.get(attempt, 0)
        if end > len(row.table) * self.memory.block_size:
            raise StepFailed(f"row {attempt} needs blocks for {end} tokens and has {len(row.table)}")

    def _check_generations(self, attempt: AttemptId, row: _Row) -> None:
        found = self.memory.generations
        if [found[block] for block in row.table] != row.generations:
            raise AssertionError(f"{attempt}: a block of its table was reused under a running step")


def _guesses(row: _Row, limit: int) -> tuple[int, int]:
    """How many drafts are tried and how many are right: one of all possible pairs, by seed and position alone."""
    pairs = [(num_tried, num_right) for num_tried in range(limit + 1) for num_right in range(num_tried + 1)]
    return pairs[sampled_token(b"drafts", row.sampling, row.num_computed, len(pairs))]
