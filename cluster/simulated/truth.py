"""How long a step really takes in a simulated fleet, and the straight line that its scheduler is told instead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.costs import NodeCosts, with_overlap, with_prefill_curve
from engine.cost_fit import fit

Chunks = Sequence[tuple[int, int]]
"""Of each prompt in a step: (tokens computed now, tokens before them)."""

_CHUNKS = (64, 256, 512, 2048, 8192)
_ALONE = (16, 32, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_BEFORE = (0, 2048, 16384)
_ROWS = (1, 4, 16, 64, 256)
_CONTEXTS = (128, 1024, 8192)
_MIXED = ((64, 0), (256, 0), (256, 4096), (512, 0), (512, 4096), (2048, 0), (2048, 4096))
"""Chunks, and the tokens before them, that are put beside rows."""

MUCH_OVERLAP = 0.5
SHOWS = 1.3
"""A chunk that takes so many times a step's fixed price takes it for itself."""


class StepTruth(Protocol):
    """Times of one node's steps. `num_extrapolated` counts the steps that its data did not cover; it only rises."""

    @property
    def num_extrapolated(self) -> int:
        """So far."""
        ...

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        """Seconds of a step that computes these chunks and decodes so many rows, which attend to `row_context` tokens
        together. Falls in none of them."""
        ...

    def belief(self) -> NodeCosts:
        """The straight line closest to it: all that a scheduler may know."""
        ...


def pairs_of(chunks: Chunks) -> float:
    """For each token of these chunks, the tokens that it attends to: n tokens after c others are n·c + n²/2."""
    return sum(tokens * (before + tokens / 2) for tokens, before in chunks)


def belief_of(step_s: Callable[[Chunks, int, int], float]) -> NodeCosts:
    """Fits straight lines to steps of all usual sizes, one chunk alone and rows alone; then an overlap to mixed steps.

    Where much hides, chunks that are hidden in the fixed price of a step say nothing of their own: the line is fitted
    again without them.
    """
    decodes = [(rows, rows * context) for rows in _ROWS for context in _CONTEXTS]
    terms = [(1.0, float(rows), float(context)) for rows, context in decodes]
    decode, per_row, per_context = fit(terms, [step_s((), rows, context) for rows, context in decodes])
    prefills = [(tokens, before) for tokens in _CHUNKS for before in _BEFORE]
    for least_s in (0.0, SHOWS * decode):
        shown = [(chunk, seconds) for chunk in prefills if (seconds := step_s([chunk], 0, 0)) >= least_s]
        terms = [(1.0, float(tokens), pairs_of([(tokens, before)])) for (tokens, before), _ in shown]
        fixed, per_token, per_pair = fit(terms, [seconds for _, seconds in shown])
        costs = NodeCosts(fixed, decode, per_token, per_pair, per_row, per_context)
        costs = with_overlap(costs, [_mixed(costs, step_s, chunk, *rows) for chunk in _MIXED for rows in decodes])
        if costs.overlap < MUCH_OVERLAP:
            break
    alone = [(tokens, step_s([(tokens, 0)], 0, 0)) for tokens in _ALONE]
    curved = with_prefill_curve(costs, alone)
    if curved.prefill_curve:
        mixed = [_mixed(curved, step_s, chunk, *rows) for chunk in _MIXED for rows in decodes]
        curved = with_overlap(curved, mixed)
    return curved


def _mixed(
    costs: NodeCosts, step_s: Callable[[Chunks, int, int], float], chunk: tuple[int, int], rows: int, context: int
) -> tuple[float, float, float]:
    """What grows with a chunk, what grows with the rows beside it, and what both take together."""
    prompts_s = costs.token_s(chunk[0] + rows) * chunk[0] + costs.per_prefill_pair_s * pairs_of([chunk])
    return prompts_s, costs.per_row_s * rows + costs.per_row_context_s * context, step_s([chunk], rows, context)


@dataclass(slots=True)
class StraightTruth:
    """Steps that cost exactly what a `NodeCosts` says."""

    costs: NodeCosts
    num_extrapolated: int = field(default=0, init=False)

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        """By the straight line."""
        costs = self.costs
        rows_s = costs.per_row_s * num_rows + costs.per_row_context_s * row_context
        if not chunks:
            return costs.decode_fixed_s + rows_s
        num_tokens = sum(tokens for tokens, _ in chunks)
        prompts_s = costs.token_s(num_tokens + num_rows) * num_tokens + costs.per_prefill_pair_s * pairs_of(chunks)
        return costs.mixed_s(prompts_s, rows_s) if num_rows else costs.prefill_s(prompts_s)

    def belief(self) -> NodeCosts:
        """Itself."""
        return self.costs
