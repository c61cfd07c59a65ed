"""Measures what steps and copies cost: for a cost table, and in short for a node that was given none."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from core.ids import AttemptId
from core.kv import num_blocks
from core.request import SamplingParams, pack_tokens
from core.step import RowGrowth, RowJoin, StepPlan, StepResult
from engine.cost_fit import fit
from engine.cost_table import CopySample, RecomputeCosts, StepSample

Clock = Callable[[], float]
Told = Callable[[float], None]
"""Called with the share of the work that is done."""

SELF_MEASUREMENT_S = 0.5
"""How long one step of a node's own short measurement may take."""

_SHORT_CHUNKS = (16, 32, 64, 128, 256)


class Runner(Protocol):
    """What is measured: an executor without rows."""

    def run(self, plan: StepPlan) -> StepResult:
        """Runs one step."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Which steps are measured, and how often each.

    Closest together where kernels change on a CPU, at 5 lines and beyond 64 (`engine.linear`): mixed steps with a chunk
    of 64 tokens are there.
    """

    prefill_tokens: tuple[int, ...] = (1, 16, 32, 64, 65, 96, 128, 256, 512)
    prefixes: tuple[int, ...] = (512, 1024, 2048)
    rows: tuple[int, ...] = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
    contexts: tuple[int, ...] = (32, 256, 1024, 2048)
    copies: tuple[int, ...] = (4, 16, 64)
    repeats: int = 5

    def points(self) -> Iterator[tuple[int, int, int, int]]:
        """Prefill tokens, those before them, rows, context of each row: what a table is made from."""
        for tokens in self.prefill_tokens:
            for prefix in (0, *self.prefixes):
                yield tokens, prefix, 0, 0
        for rows in self.rows:
            for context in self.contexts:
                yield 0, 0, rows, context

    @classmethod
    def of_gpu(cls) -> "Grid":
        """Steps of a GPU: prompts and rows that occupy one, contexts that fill its memory."""
        return cls(
            prefill_tokens=(1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
            prefixes=(1024, 4096, 8192),
            rows=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            contexts=(64, 512, 2048, 8192),
        )

    def checks(self) -> Iterator[tuple[int, int, int, int]]:
        """Steps between the points and of both kinds: what a table is held against."""
        between = [(a + b) // 2 for a, b in zip(self.prefill_tokens[-3:], self.prefill_tokens[-2:], strict=False)]
        contexts = [(a + b) // 2 for a, b in zip(self.contexts, self.contexts[1:], strict=False)]
        for tokens in between:
            yield tokens, 0, 0, 0
            yield tokens, self.prefixes[0] // 2, 0, 0
        for rows in self.rows[1::2]:
            for context in contexts[:2]:
                yield 0, 0, rows - rows // 4, context
                yield between[0], 0, rows, context


class StepProbe:
    """Times steps that it makes up, on an executor that does nothing else.

    Owns: all blocks of the pool while it measures; what they hold counts for nothing. Fill them before (`fill`): memory
    that was never written is read from one page that stays in cache.
    """

    def __init__(
        self,
        runner: Runner,
        block_size: int,
        num_pool_blocks: int,
        max_model_len: int,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._runner = runner
        self.block_size = block_size
        self._num_pool_blocks = num_pool_blocks
        self._max_model_len = max_model_len
        self._clock = clock
        self._num_steps = 0
        self._next_block = 0

    def fits(self, prefill_tokens: int, prefill_context: int, rows: int, context: int, repeats: int) -> bool:
        """Whether pool and model hold such a step, and the steps around it."""
        prompt, decoded = prefill_tokens + prefill_context, context + repeats + 2
        longest = max(prompt + 1 if prompt else 0, decoded if rows else 0)
        blocks = num_blocks(prompt + 1, self.block_size) + rows * num_blocks(decoded, self.block_size)
        return longest <= self._max_model_len and blocks <= self._num_pool_blocks

    def sample(self, prefill_tokens: int, prefill_context: int, rows: int, context: int, repeats: int) -> StepSample:
        """One kind of step, `repeats` times after one that does not count. The rows' contexts grow by one each."""
        self._next_block = 0
        decoding = [self._join(f"row-{i}#0", context, context - 1, repeats + 2) for i in range(rows)]
        names = tuple(join.attempt for join in decoding)
        times: list[float] = []
        if rows and not prefill_tokens:
            self._timed(StepPlan(self._step(), names, (1,) * rows, joined=tuple(decoding)))
            times = [self._timed(StepPlan(self._step(), names, (1,) * rows)) for _ in range(repeats)]
        else:
            first_free = self._next_block
            joined = tuple(decoding)
            for _ in range(repeats + 1):
                self._next_block = first_free
                prompt = self._join("prompt#0", prefill_context + prefill_tokens, prefill_context, 1)
                columns = ((*names, prompt.attempt), (*(1,) * rows, prefill_tokens))
                times.append(self._timed(StepPlan(self._step(), *columns, joined=(*joined, prompt))))
                self._run(StepPlan(self._step(), (), (), left=(prompt.attempt,)))
                joined = ()
            del times[0]
        self._run(StepPlan(self._step(), (), (), left=names))
        return StepSample(prefill_tokens, prefill_context, rows, context, tuple(times))

    def copy(self, blocks: int, repeats: int) -> CopySample:
        """A row of so many blocks, out and back."""
        self._next_block = 0
        row = self._join("copied#0", blocks * self.block_size, blocks * self.block_size - 1, 0)
        self._run(StepPlan(self._step(), (row.attempt,), (1,), joined=(row,)))
        saves, restores = [], []
        growth = RowGrowth(row.attempt, row.block_ids, row.generations)
        for _ in range(repeats + 1):
            saves.append(self._timed(StepPlan(self._step(), (), (), saved=(row.attempt,))))
            restores.append(self._timed(StepPlan(self._step(), (), (), restored=(growth,))))
        self._run(StepPlan(self._step(), (), (), left=(row.attempt,)))
        return CopySample(blocks, tuple(saves[1:]), tuple(restores[1:]))

    def _join(self, name: str, num_tokens: int, num_computed: int, room: int) -> RowJoin:
        needed = num_blocks(num_tokens + room, self.block_size)
        blocks = tuple(range(self._next_block, self._next_block + needed))
        self._next_block += needed
        params = SamplingParams(max_tokens=self._max_model_len, temperature=0.0, ignore_eos=True)
        tokens = pack_tokens([0] * num_tokens)
        return RowJoin(AttemptId(name), tokens, num_computed, params, blocks, (1,) * needed, num_tokens)

    def _timed(self, plan: StepPlan) -> float:
        began = self._clock()
        self._run(plan)
        return self._clock() - began

    def _run(self, plan: StepPlan) -> None:
        self._runner.run(plan)

    def _step(self) -> int:
        self._num_steps += 1
        return self._num_steps


@dataclass(frozen=True, slots=True)
class Measured:
    """What `measure` found: the samples of a table, and the steps that fitted neither pool nor model."""

    steps: tuple[StepSample, ...]
    copies: tuple[CopySample, ...]
    checks: tuple[StepSample, ...]
    num_left_out: int


def measure(probe: StepProbe, grid: Grid, told: Told = lambda share: None) -> Measured:
    """Measure a grid of steps and copies, in an order that spreads a machine's drift over all of them."""
    repeats = grid.repeats
    points = [point for point in grid.points() if probe.fits(*point, repeats)]
    checks = [point for point in grid.checks() if probe.fits(*point, repeats)]
    copies = [blocks for blocks in grid.copies if probe.fits(0, 0, 1, blocks * probe.block_size, repeats)]
    order = points + checks
    random.Random(0).shuffle(order)
    samples = {}
    for done, point in enumerate(order, 1):
        samples[point] = probe.sample(*point, repeats)
        told(done / len(order))
    copied = tuple(probe.copy(blocks, repeats) for blocks in copies)
    num_all = sum(1 for _ in grid.points()) + sum(1 for _ in grid.checks())
    steps, held_against = (tuple(samples[point] for point in of) for of in (points, checks))
    return Measured(steps, copied, held_against, num_all - len(order))


def measure_recompute(probe: StepProbe) -> RecomputeCosts:
    """What a node needs to choose between computing a row again and copying it out, in about a second or less.

    Chunks double until one takes half of `SELF_MEASUREMENT_S`. Leaves bytes in the first blocks of the pool.
    """
    terms, seconds = [], []
    for tokens in [tokens for tokens in _SHORT_CHUNKS if probe.fits(tokens, 0, 0, 0, 1)] or [1]:
        sample = probe.sample(tokens, 0, 0, 0, 1)
        terms.append((1.0, float(tokens), tokens * tokens / 2))
        seconds.append(sample.median_s)
        if sample.median_s > SELF_MEASUREMENT_S / 2:
            break
    blocks = 16
    while blocks > 1 and not probe.fits(0, 0, 1, blocks * probe.block_size, 3):
        blocks //= 2
    fixed, per_token, per_context = fit(terms, seconds)
    return RecomputeCosts(fixed, per_token, per_context, probe.copy(blocks, 3).median_s / blocks)


def fill(kv_bytes: memoryview | bytearray) -> None:
    """Write every byte of a KV pool: as small numbers, whatever the type (0.0115 in float32, 1.06 in float16)."""
    view = memoryview(kv_bytes).cast("B")
    piece = bytes([0x3C]) * (1 << 20)
    for start in range(0, len(view), len(piece)):
        end = min(start + len(piece), len(view))
        view[start:end] = piece[: end - start]
