"""Step times by the runs of the Splitwise paper (Patel et al., ISCA 2024): Llama-2-70B and BLOOM-176B, A100 and H100.

Source of the form and of the interpolation: Mutinifni/splitwise-sim, `data/perf_model.csv` (MIT). Times in
milliseconds, of vLLM in 2023. Rows of 2 GPUs at batch 64 are broken (a prompt faster than at batch 32) and left out.
"""

import csv
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path
from statistics import median

from cluster.simulated.truth import Chunks, belief_of
from core.costs import NodeCosts
from core.errors import ConfigError

MIXED = 1.1
"""A step that does both costs so much of its prompts alone, says the paper."""

DECODED_PROMPT, DECODED_TOKENS = 512, 128
"""Batches were swept with such requests only, so the table does not know how a decode step grows with its context."""

_COLUMNS = (
    "model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time",
)  # fmt: skip


class TokenCurve(StrEnum):
    """What a decode step is looked up by.

    MEASURED: the rows in it, in the table's own sweep of batches. PUBLISHED: as the paper's simulator does: the table's
    times over prompt tokens (prompt · batch), looked up at the number of rows: decoding is almost free in it.
    """

    MEASURED = "measured"
    PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Line:
    """Straight between points, and beyond them in the direction of the outermost two."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    @staticmethod
    def through(points: Iterable[tuple[float, float]]) -> "Line":
        """The medians of all points with the same `x`."""
        by_x: dict[float, list[float]] = {}
        for x, y in points:
            by_x.setdefault(x, []).append(y)
        xs = tuple(sorted(by_x))
        return Line(xs, tuple(median(by_x[x]) for x in xs))

    def at(self, x: float) -> float:
        """The value at `x`, not below 0."""
        right = min(max(bisect_right(self.xs, x), 1), len(self.xs) - 1)
        (x0, x1), (y0, y1) = self.xs[right - 1 : right + 1], self.ys[right - 1 : right + 1]
        return max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0))


@dataclass(slots=True)
class SplitwiseTruth:
    """One machine. `prompts` has times over prompt tokens, `tokens` over rows.

    A later chunk of a prompt costs what it adds to the curve, if that is more than its tokens cost alone. Context does
    not slow a decode step down: see `DECODED_PROMPT`. A mixed step costs `MIXED` times its prompts, each row counted as
    one token more.
    """

    prompts: Line
    tokens: Line
    num_extrapolated: int = 0

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        """By the curves."""
        if not chunks:
            self.num_extrapolated += num_rows > self.tokens.xs[-1]
            return self.tokens.at(num_rows) / 1000
        num_tokens, prompts = sum(tokens for tokens, _ in chunks) + num_rows, self.prompts
        self.num_extrapolated += max(num_tokens, *(tokens + before for tokens, before in chunks)) > prompts.xs[-1]
        more_ms = sum(self._more_ms(tokens, before) for tokens, before in chunks if before)
        return (prompts.at(num_tokens) + more_ms) * (MIXED if num_rows else 1.0) / 1000

    def belief(self) -> NodeCosts:
        """The straight line closest to it."""
        return belief_of(SplitwiseTruth(self.prompts, self.tokens).step_s)

    def _more_ms(self, tokens: int, before: int) -> float:
        added = self.prompts.at(before + tokens) - self.prompts.at(before)
        return max(0.0, added - self.prompts.at(tokens))


@dataclass(frozen=True, slots=True)
class _Run:
    prompt_tokens: int
    num_rows: int
    output_tokens: int
    prompt_ms: float
    token_ms: float


def read_splitwise(
    path: Path, model: str, hardware: str, tp: int, curve: TokenCurve = TokenCurve.MEASURED
) -> SplitwiseTruth:
    """The machine's curves from the file. Raises ConfigError naming the line and the field, or what is not in it."""
    runs = _runs(path, model, hardware, tp)
    prompts = Line.through((float(run.prompt_tokens * run.num_rows), run.prompt_ms) for run in runs)
    if curve is TokenCurve.PUBLISHED:
        tokens = Line.through((float(run.prompt_tokens * run.num_rows), run.token_ms) for run in runs)
    else:
        swept = [run for run in runs if (run.prompt_tokens, run.output_tokens) == (DECODED_PROMPT, DECODED_TOKENS)]
        tokens = Line.through((float(run.num_rows), run.token_ms) for run in swept)
    if len(prompts.xs) < 2 or len(tokens.xs) < 2:
        raise ConfigError([f"{path} has too few runs of {model} on {hardware} with {tp} GPUs to interpolate between"])
    return SplitwiseTruth(prompts, tokens)


def _runs(path: Path, model: str, hardware: str, tp: int) -> list[_Run]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError([f"{path} has no column {', '.join(missing)}"])
            lines = list(enumerate(reader, 2))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError([f"performance table {path} cannot be read: {error}"]) from error
    wanted, there = (model, hardware, str(tp)), set[tuple[str, ...]]()
    runs: list[_Run] = []
    for number, line in lines:
        what = (line["model"], line["hardware"], line["tensor_parallel"])
        there.add(what)
        if what == wanted:
            runs.append(_run(path, number, line))
    if not runs:
        names = ", ".join(" ".join(each) for each in sorted(there, key=str))
        raise ConfigError([f"{path} has no runs of {' '.join(wanted)}; it has {names}"])
    return [run for run in runs if tp != 2 or run.num_rows != 64]


def _run(path: Path, number: int, line: Mapping[str, str]) -> _Run:
    numbers = [_number(path, number, line, name) for name in _COLUMNS[3:]]
    return _Run(int(numbers[0]), int(numbers[1]), int(numbers[2]), numbers[3], numbers[4])


def _number(path: Path, number: int, line: Mapping[str, str], name: str) -> float:
    try:
        value = float(line[name])
    except (TypeError, ValueError):
        value = -1.0
    if not isfinite(value) or value <= 0:
        raise ConfigError([f"{path}, line {number}: {name} {line[name]!r} is not a number above 0"])
    return value
