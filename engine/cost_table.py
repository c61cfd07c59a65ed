"""What steps and copies of one model cost on one machine: measured points, and what lies between them. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import median

from core.errors import ConfigError
from engine.cost_fit import Curve, Surface, fit

VERSION = 1
KIND = "penstock cost table"


@dataclass(frozen=True, slots=True)
class StepSample:
    """A step, measured several times.

    It computes `prefill_tokens` of one prompt after `prefill_context` tokens that have KV, and decodes one token of
    each of `rows` rows that attend to `context` tokens each.
    """

    prefill_tokens: int
    prefill_context: int
    rows: int
    context: int
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The time that stands for it."""
        return median(self.seconds)


@dataclass(frozen=True, slots=True)
class CopySample:
    """A row of `blocks` KV blocks, copied out to host memory and back, several times."""

    blocks: int
    save_s: tuple[float, ...]
    restore_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """One way: the mean of out and back."""
        return (median(self.save_s) + median(self.restore_s)) / 2


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What a table was measured with. `machine` is for people; the rest decides whether it fits a node."""

    model: str
    digest: str
    dtype: str
    device: str
    quantization: str
    num_threads: int
    block_size: int
    date: str
    machine: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class LinearCosts:
    """A step takes `fixed_s + per_token_s · tokens + per_context_s · tokens that its rows had before it`, roughly."""

    fixed_s: float
    per_token_s: float
    per_context_s: float


@dataclass(frozen=True, slots=True)
class RecomputeCosts:
    """What it costs to compute n tokens again, `fixed_s + a·n + b·n²/2`, or to copy a block out or back.

    `a` is `prefill_s_per_token`, `b` is `prefill_s_per_token_context`: for each token and token before it.
    """

    fixed_s: float
    prefill_s_per_token: float
    prefill_s_per_token_context: float
    copy_s_per_block: float


@dataclass(frozen=True, slots=True)
class TableError:
    """Relative errors of a table's predictions on steps that it was not made from."""

    median: float
    worst: float


@dataclass(frozen=True, slots=True)
class _Curves:
    chunk: Curve
    prefix: Surface
    rows: Curve
    first_context: float
    context: Surface


@dataclass(frozen=True, slots=True)
class CostTable:
    """Times of steps by interpolation between measured ones.

    Invariant: `step_s` falls in none of its arguments. `checks` are steps measured beside `steps` and not used but to
    say how far off the table is.
    """

    facts: TableFacts
    steps: tuple[StepSample, ...]
    copies: tuple[CopySample, ...]
    checks: tuple[StepSample, ...]
    _curves: _Curves

    @staticmethod
    def of(
        facts: TableFacts, steps: Sequence[StepSample], copies: Sequence[CopySample], checks: Sequence[StepSample] = ()
    ) -> "CostTable":
        """The table of these samples. Raises ConfigError where they hold no prefill, no decode or no copy."""
        missing = [
            f"a cost table needs samples of {what}"
            for what, found in (
                ("prefill without context", any(each.prefill_tokens and not each.prefill_context for each in steps)),
                ("decoding", any(each.rows and not each.prefill_tokens for each in steps)),
                ("copies", bool(copies)),
            )
            if not found
        ]
        if missing:
            raise ConfigError(missing)
        return CostTable(facts, tuple(steps), tuple(copies), tuple(checks), _curves(steps))

    def step_s(self, prefill_tokens: float, prefill_context: float, rows: float, context: float) -> float:
        """Seconds of a step that computes so many prompt tokens after `prefill_context` others, and decodes `rows` rows
        that attend to `context` tokens each, on average."""
        if prefill_tokens <= 0 and rows <= 0:
            return 0.0
        curves = self._curves
        attended = curves.context.at(rows, context - curves.first_context)
        decoding = curves.rows.at(rows) if rows > 0 else 0.0
        if prefill_tokens <= 0:
            return decoding + attended
        together = max(curves.chunk.at(prefill_tokens + rows), decoding)
        return together + curves.prefix.at(prefill_tokens, prefill_context) + attended

    def error(self) -> TableError | None:
        """How far off it is; None where nothing was measured to tell."""
        errors = [
            abs(self.step_s(each.prefill_tokens, each.prefill_context, each.rows, each.context) / each.median_s - 1)
            for each in self.checks
        ]
        return TableError(median(errors), max(errors)) if errors else None

    def linear(self) -> LinearCosts:
        """The straight costs closest to all its steps, a long chunk's own square part spread over its tokens."""
        terms = [
            (1.0, each.prefill_tokens + each.rows, each.prefill_context + each.rows * each.context)
            for each in self.steps
        ]
        return LinearCosts(*fit(terms, [each.median_s for each in self.steps]))

    def recompute(self) -> RecomputeCosts:
        """What decides between computing a row again and copying it out."""
        prefills = [each for each in self.steps if each.prefill_tokens and not each.rows]
        terms = [
            (1.0, each.prefill_tokens, each.prefill_tokens * (each.prefill_context + each.prefill_tokens / 2))
            for each in prefills
        ]
        fixed, per_token, per_context = fit(terms, [each.median_s for each in prefills])
        (per_block,) = fit([(each.blocks,) for each in self.copies], [each.median_s for each in self.copies])
        return RecomputeCosts(fixed, per_token, per_context, per_block)

    def write(self, path: Path) -> None:
        """Write it as JSON. Raises OSError."""
        error = self.error()
        words = {
            "kind": KIND,
            "version": VERSION,
            "facts": asdict(self.facts) | {"machine": dict(self.facts.machine)},
            "fits": {"linear": asdict(self.linear()), "recompute": asdict(self.recompute())},
            "error": None if error is None else asdict(error),
            "steps": [asdict(each) for each in self.steps],
            "copies": [asdict(each) for each in self.copies],
            "checks": [asdict(each) for each in self.checks],
        }
        path.write_text(json.dumps(words, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> "CostTable":
        """Read a file that `write` wrote. Raises ConfigError naming the file and what is wrong with it."""
        try:
            words = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError([f"cost table {path} cannot be read: {error}"]) from error
        if not isinstance(words, dict) or words.get("kind") != KIND:
            raise ConfigError([f"{path} is not a cost table; `penstock profile` writes one"])
        if words.get("version") != VERSION:
            found = f"cost table {path} has version {words.get('version')!r}, this Penstock reads {VERSION}"
            raise ConfigError([f"{found}; measure again with `penstock profile`"])
        try:
            return CostTable.of(
                TableFacts(**words["facts"]),
                _step_samples(words["steps"]),
                [_copy_sample(each) for each in words["copies"]],
                _step_samples(words["checks"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError([f"cost table {path} is damaged: {type(error).__name__}: {error}"]) from error


def _curves(steps: Sequence[StepSample]) -> _Curves:
    """A step's tokens, then what is attended to beyond the cheapest case: before a chunk, and by each row."""
    prefills = [each for each in steps if each.prefill_tokens and not each.rows]
    decodes = [each for each in steps if each.rows and not each.prefill_tokens]
    chunk = {float(each.prefill_tokens): each.median_s for each in prefills if not each.prefill_context}
    first = min(each.context for each in decodes)
    rows = {float(each.rows): each.median_s for each in decodes if each.context == first}
    prefix = {
        (float(each.prefill_tokens), float(each.prefill_context)): each.median_s - chunk[each.prefill_tokens]
        for each in prefills
        if each.prefill_context and each.prefill_tokens in chunk
    }
    context = {
        (float(each.rows), float(each.context - first)): each.median_s - rows[each.rows]
        for each in decodes
        if each.context > first and each.rows in rows
    }
    return _Curves(
        Curve.through(chunk), Surface.through(prefix), Curve.through(rows), float(first), Surface.through(context)
    )


def _step_samples(words: Sequence[Mapping[str, object]]) -> list[StepSample]:
    return [
        StepSample(
            _count(each["prefill_tokens"]),
            _count(each["prefill_context"]),
            _count(each["rows"]),
            _count(each["context"]),
            _times(each["seconds"]),
        )
        for each in words
    ]


def _copy_sample(words: Mapping[str, object]) -> CopySample:
    return CopySample(_count(words["blocks"]), _times(words["save_s"]), _times(words["restore_s"]))


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _times(value: object) -> tuple[float, ...]:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(each, int | float) and 0 < each < inf for each in value)
    ):
        raise ValueError(f"{value!r} are not times")
    return tuple(map(float, value))
