"""Step times by the fits of the DistServe paper (Zhong et al., OSDI 2024): OPT models on A100-80G.

Source of the form and of its rules: LLMServe/DistServe, `simdistserve` (Apache-2.0). A file has, in milliseconds,
`{model: {tp: {"prefill": [a, b, c], "decoding_smallbs": …, "decoding_largebs": …,
"decoding_large_small_bs_threshold": n}}}`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from cluster.simulated.truth import Chunks, belief_of
from core.costs import NodeCosts
from core.errors import ConfigError

MAX_PROMPT = 2048
"""OPT's longest context: no fit saw a longer prompt."""

MAX_PREFILL_TOKENS = 16_384
MAX_ROWS = 1024
MAX_CONTEXT = 65_536
"""The largest batches of the paper's own flags."""

PIPELINE_MS = 1.0
"""Each stage of a pipelined prefill costs so much for each stage that there is."""

Fit = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class DistServeFit:
    """One model at one tensor-parallel size; milliseconds. Prefill a + b·ΣL + c·ΣL²; decode a + b·Σcontext + c·rows, by
    `small` below `threshold` rows and by `large` from there on."""

    prefill: Fit
    small: Fit
    large: Fit
    threshold: int

    def prefill_ms(self, chunks: Chunks) -> float:
        """What prompts cost beside the fixed part. A chunk costs what it adds to its prompt, so that chunks add up to
        the whole; where c is negative, it counts only as far as prompts were measured."""
        _, per_token, per_square = self.prefill
        return sum(
            per_token * tokens + per_square * self._squares(before, before + tokens) for tokens, before in chunks
        )

    def _squares(self, start: int, end: int) -> float:
        most = MAX_PROMPT if self.prefill[2] < 0 else end
        return float(min(end, most) ** 2 - min(start, most) ** 2)

    def decode(self, num_rows: float) -> Fit:
        """The fit for a batch of this size."""
        return self.small if num_rows < self.threshold else self.large


@dataclass(slots=True)
class DistServeTruth:
    """A node of `tp` × `num_stages` GPUs.

    Over a pipeline a prefill step is one stage's share, `t / stages + 1 ms · stages`: what a node can start per second;
    the way through the later stages is not in it. A decode step is `num_stages` batches under way at once, each with
    its share of rows and context. Every step adds 2 ms and 0.1 µs per token that is attended to, the overhead of the
    original; `has_overhead` False leaves it out.

    Mixed steps, which the original never runs: the larger fixed part once, all that grows with tokens from both fits.
    """

    fit: DistServeFit
    num_stages: int = 1
    has_overhead: bool = True
    num_extrapolated: int = 0

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        """By the fits."""
        stages, fit = self.num_stages, self.fit
        self._note_range(chunks, num_rows, row_context)
        a, per_context, per_row = fit.decode(num_rows / stages)
        rows_ms = (per_context * row_context + per_row * num_rows) / stages
        if not chunks:
            return (a + rows_ms + self._overhead_ms(row_context / stages)) / 1000
        fixed = max(fit.prefill[0], a) if num_rows else fit.prefill[0]
        prefill_ms = (fixed + fit.prefill_ms(chunks)) / stages + (PIPELINE_MS * stages if stages > 1 else 0.0)
        attended = sum(tokens + before for tokens, before in chunks) + row_context
        return (prefill_ms + rows_ms + self._overhead_ms(attended)) / 1000

    def belief(self) -> NodeCosts:
        """The straight line closest to it."""
        return belief_of(DistServeTruth(self.fit, self.num_stages, self.has_overhead).step_s)

    def _overhead_ms(self, num_tokens: float) -> float:
        return 2.0 + 1e-4 * num_tokens if self.has_overhead else 0.0

    def _note_range(self, chunks: Chunks, num_rows: int, row_context: int) -> None:
        is_long = any(tokens + before > MAX_PROMPT for tokens, before in chunks)
        is_large = sum(tokens for tokens, _ in chunks) > MAX_PREFILL_TOKENS
        self.num_extrapolated += is_long or is_large or num_rows > MAX_ROWS or row_context > MAX_CONTEXT


def read_distserve(path: Path, model: str, tp: int) -> DistServeFit:
    """The fits of one model and tensor-parallel size. Raises ConfigError naming what is wrong with the file."""
    try:
        words = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError([f"step-time fits {path} cannot be read: {error}"]) from error
    models = words if isinstance(words, dict) else {}
    name = next((each for each in models if each == model or each.rpartition("/")[2] == model), None)
    sizes = models.get(name, {}) if name else {}
    if not isinstance(sizes, dict) or str(tp) not in sizes:
        there = ", ".join(f"{each} TP{size}" for each in models for size in models[each]) or "nothing"
        raise ConfigError([f"step-time fits {path} have {there}, not {model} TP{tp}"])
    return _fit_of(path, sizes[str(tp)])


def _fit_of(path: Path, words: Mapping[str, object]) -> DistServeFit:
    try:
        threshold = words["decoding_large_small_bs_threshold"]
        if not isinstance(threshold, int) or threshold < 0:
            raise ValueError(f"a threshold of {threshold!r} rows")
        found = [_numbers(words, name) for name in ("prefill", "decoding_smallbs", "decoding_largebs")]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError([f"step-time fits {path} are damaged: {type(error).__name__}: {error}"]) from error
    return DistServeFit(found[0], found[1], found[2], threshold)


def _numbers(words: Mapping[str, object], name: str) -> Fit:
    """Three numbers; the first two are never negative, the last one is in one of the published fits."""
    values = words[name]
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError(f"{name} {values!r} are not three numbers")
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            raise ValueError(f"{name}: {value!r} is not a number")
    if values[0] < 0 or values[1] < 0 or (values[2] < 0 and name != "prefill"):
        raise ValueError(f"{name} {values!r} would give negative times")
    return float(values[0]), float(values[1]), float(values[2])
