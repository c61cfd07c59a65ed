"""A stand-in for the executor: the next token is a checksum of all KV that the attempt attends to. Pure, no tensors.

What it can catch: a slot that is stale, missing, foreign, misplaced, written twice or read from a block that was
reused; KV that was handed over in part or in another order; a sampler that depends on anything but seed and position;
a row that stands elsewhere than the machines believe. Each changes every later token of the attempt: a slot's value is
mixed from its predecessor as memory gives it back, and a token from every slot. Blocks that are reused under a running
step are seen at once, by their generation.

What it cannot catch: wrong arithmetic, rounding that depends on the batch, a wrong layout inside a block, real time.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from core.errors import StepFailed
from core.events import FinishReason
from core.finish import finish_reason
from core.ids import AttemptId
from core.request import Request, unpack_tokens
from core.step import RowJoin, StepPlan, StepResult

SLOT_BYTES = 8
DIGEST_BYTES = 16
VOCAB_SIZE = 61
"""Small, so that end tokens come up; prime, so that no arithmetic slip hides in a remainder."""

_MASK = (1 << 64) - 1
_BEFORE_FIRST = 0x9E3779B97F4A7C15


def slot_value(before: int, token_id: int, position: int) -> int:
    """KV of one token: a 64-bit mix of its predecessor's KV, the token, and its place. A bijection of `before`."""
    mixed = (before ^ (token_id + 1) * 0xBF58476D1CE4E5B9 ^ (position + 1) * 0x94D049BB133111EB) & _MASK
    mixed = (mixed ^ mixed >> 29) * 0xD6E8FEB86659FD93 & _MASK
    return mixed ^ mixed >> 32


def sampled_token(slots: bytes, seed: int, position: int, vocab_size: int) -> int:
    """The token at `position`, after all `slots` before it: their checksum under the key (seed, position)."""
    key = ((seed & _MASK) << 64 | position).to_bytes(16, "little")
    return int.from_bytes(blake2b(slots, digest_size=8, key=key).digest(), "little") % vocab_size


def reference_tokens(
    request: Request, eos_token_ids: frozenset[int] = frozenset(), vocab_size: int = VOCAB_SIZE
) -> tuple[tuple[int, ...], FinishReason]:
    """The oracle: what one node that does nothing else would answer, and why it stops. No blocks, no steps."""
    slots, value = array("Q"), _BEFORE_FIRST
    output: list[int] = []
    pending: Sequence[int] = unpack_tokens(request.token_ids)
    while True:
        for token_id in pending:
            value = slot_value(value, token_id, len(slots))
            slots.append(value)
        output.append(sampled_token(slots.tobytes(), request.sampling.seed, len(slots), vocab_size))
        finish = finish_reason(output[-1], len(output), request.sampling, eos_token_ids)
        if finish is not None:
            return tuple(output), finish
        pending = output[-1:]


class FakeMemory:
    """KV memory of a pretended node: a generation for each block, and `block_size` slots of 8 bytes in it.

    Owns: the bytes.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.generations = [0] * num_blocks
        self.block_bytes = block_size * SLOT_BYTES
        self.bytes = bytearray(blake2b(b"never written").digest() * (num_blocks * self.block_bytes // 64 + 1))
        self.slots = memoryview(self.bytes).cast("Q")

    def digest(self, block: int) -> bytes:
        """16 bytes over the whole block, whatever of it was ever written."""
        return blake2b(self.read(block, 0, self.block_bytes), digest_size=DIGEST_BYTES).digest()

    def read(self, block: int, start: int, end: int) -> bytearray:
        """A copy of some of a block's bytes."""
        offset = block * self.block_bytes
        return self.bytes[offset + start : offset + end]

    def write(self, block: int, start: int, data: bytes | bytearray) -> None:
        """Put bytes into a block."""
        offset = block * self.block_bytes + start
        self.bytes[offset : offset + len(data)] = data

    def gather(self, table: Iterable[int], num_tokens: int) -> bytes:
        """The slots of the first `num_tokens` tokens of a block table, as memory has them now."""
        size, data = self.block_bytes, self.bytes
        return b"".join([data[block * size : block * size + size] for block in table])[: num_tokens * SLOT_BYTES]


@dataclass(slots=True)
class _Row:
    token_ids: list[int]
    num_computed: int
    seed: int
    table: list[int]
    generations: list[int]


class FakeExecutor:
    """Runs plans in the order given, as `engine.executor.Executor` does.

    Owns: the rows, and the memory's bytes while a step runs.
    Invariant: rows of a failed step are forgotten, so a plan made ahead of the failure cannot run on half a state.

    A step may be run in parts, to let other things happen meanwhile: `begin` (rows change, generations are written),
    `advance` for each row, `finish`.
    """

    def __init__(self, memory: FakeMemory, vocab_size: int = VOCAB_SIZE) -> None:
        self.memory = memory
        self._vocab_size = vocab_size
        self._rows: dict[AttemptId, _Row] = {}
        self._sampled: dict[AttemptId, int] = {}

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

    def begin(self, plan: StepPlan) -> None:
        """Rows leave, join and grow; every generation is in its block's header before any byte is written."""
        self._sampled = {}
        for attempt in plan.left:
            self._rows.pop(attempt, None)
        for join in plan.joined:
            self._join(join)
        for growth in plan.grown:
            row = self._row(growth.attempt)
            self._append(row, growth.block_ids, growth.generations)
        for attempt, num_tokens in zip(plan.attempts, plan.num_tokens, strict=True):
            self._check_due(attempt, num_tokens)

    def advance(self, attempt: AttemptId, num_tokens: int) -> None:
        """Write the KV of a row's next tokens; where they were the last known ones, sample."""
        row, memory = self._row(attempt), self.memory
        self._check_generations(attempt, row)
        slots, size, table = memory.slots, memory.block_size, row.table
        for position in range(row.num_computed, row.num_computed + num_tokens):
            at = position - 1
            before = slots[table[at // size] * size + at % size] if position else _BEFORE_FIRST
            slots[table[position // size] * size + position % size] = slot_value(
                before, row.token_ids[position], position
            )
        row.num_computed += num_tokens
        if row.num_computed == len(row.token_ids):
            self._sampled[attempt] = self._sample(row)

    def finish(self, plan: StepPlan, duration_s: float) -> StepResult:
        """What the step produced: sampled tokens, which now are known, and digests over what memory holds."""
        sampled = {attempt: self._sampled[attempt] for attempt in plan.attempts if attempt in self._sampled}
        for attempt, token_id in sampled.items():
            self._rows[attempt].token_ids.append(token_id)
        digests = tuple(self.memory.digest(block) for block in plan.seal)
        return StepResult(plan.step, tuple(sampled), tuple(sampled.values()), plan.seal, digests, duration_s)

    def forget(self, plan: StepPlan) -> None:
        """Forget the rows of a step that failed."""
        for attempt in plan.attempts:
            self._rows.pop(attempt, None)
        for join in plan.joined:
            self._rows.pop(join.attempt, None)

    def context_tokens(self, plan: StepPlan) -> int:
        """Tokens that the plan's rows attend to before it begins."""
        joined = {join.attempt: join.num_computed for join in plan.joined}
        return sum(
            joined[attempt] if attempt in joined else self._rows[attempt].num_computed
            for attempt in plan.attempts
            if attempt in joined or attempt in self._rows
        )

    def _sample(self, row: _Row) -> int:
        attended = self.memory.gather(row.table, row.num_computed)
        return sampled_token(attended, row.seed, row.num_computed, self._vocab_size)

    def _join(self, join: RowJoin) -> None:
        token_ids = list(unpack_tokens(join.token_ids))
        if join.attempt in self._rows:
            raise StepFailed(f"row {join.attempt} joins and is resident already")
        if not 0 <= join.num_computed < len(token_ids):
            raise StepFailed(f"row {join.attempt} joins with {join.num_computed} of {len(token_ids)} tokens computed")
        row = _Row(token_ids, join.num_computed, join.sampling.seed, [], [])
        self._append(row, join.block_ids, join.generations)
        self._rows[join.attempt] = row

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
        end = row.num_computed + num_tokens
        if num_tokens < 1 or end > len(row.token_ids):
            known = len(row.token_ids)
            raise StepFailed(
                f"row {attempt} cannot advance {num_tokens} from {row.num_computed}: {known} tokens are known"
            )
        if end > len(row.table) * self.memory.block_size:
            raise StepFailed(f"row {attempt} needs blocks for {end} tokens and has {len(row.table)}")

    def _check_generations(self, attempt: AttemptId, row: _Row) -> None:
        found = self.memory.generations
        if [found[block] for block in row.table] != row.generations:
            raise AssertionError(f"{attempt}: a block of its table was reused under a running step")
