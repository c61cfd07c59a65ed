"""What steps consist of and what that costs: the words in which nodes report and schedulers predict."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

CROOKED = 0.1
"""How far from measured steps a straight line may be, in relative terms."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step consists of, or many steps together; every field adds up.

    A step with any prompt token is a prefill step, whatever else it does; one with rows only is a decode step.
    `prefill_pairs`: for each prompt token that is computed, the tokens it attends to (n tokens after c others:
    n·c + n²/2). `row_context`: tokens that decode rows attend to. Of the prefill steps some are mixed, which have rows
    too: `mixed_rows` and `mixed_context` are those rows and what they attend to.
    """

    num_prefill_steps: int = 0
    num_decode_steps: int = 0
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    num_rows: int = 0
    row_context: int = 0
    num_mixed_steps: int = 0
    mixed_rows: int = 0
    mixed_context: int = 0

    @property
    def lines_per_prefill_step(self) -> float:
        """Prompt tokens and rows of a prefill step, on average."""
        return (self.prefill_tokens + self.mixed_rows) / max(1, self.num_prefill_steps)

    def plus(self, other: "StepWork") -> "StepWork":
        """Both together."""
        return StepWork(
            self.num_prefill_steps + other.num_prefill_steps,
            self.num_decode_steps + other.num_decode_steps,
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_pairs + other.prefill_pairs,
            self.num_rows + other.num_rows,
            self.row_context + other.row_context,
            self.num_mixed_steps + other.num_mixed_steps,
            self.mixed_rows + other.mixed_rows,
            self.mixed_context + other.mixed_context,
        )

    def repeated(self, num_runs: int) -> "StepWork":
        """A decode step that is run so many times, each row's context longer by one token each time."""
        return StepWork(
            num_decode_steps=self.num_decode_steps * num_runs,
            num_rows=self.num_rows * num_runs,
            row_context=self.row_context * num_runs + self.num_rows * num_runs * (num_runs - 1) // 2,
        )

    def minus(self, earlier: "StepWork") -> "StepWork":
        """What came since an earlier sum."""
        return StepWork(
            self.num_prefill_steps - earlier.num_prefill_steps,
            self.num_decode_steps - earlier.num_decode_steps,
            self.prefill_tokens - earlier.prefill_tokens,
            self.prefill_pairs - earlier.prefill_pairs,
            self.num_rows - earlier.num_rows,
            self.row_context - earlier.row_context,
            self.num_mixed_steps - earlier.num_mixed_steps,
            self.mixed_rows - earlier.mixed_rows,
            self.mixed_context - earlier.mixed_context,
        )


PrefillCurve = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class NodeCosts:
    """Prices of a node's steps, in seconds: straight lines through what was measured or fitted.

    Prompts alone take `prefill_fixed_s` and what grows with them, rows alone `decode_fixed_s` and what grows with them.
    A mixed step pays the larger fixed price and what grows with both; less `overlap` times what it would save if it
    took only as long as the longer one of the two alone: 1 where arithmetic goes on while memory is read, 0 where each
    takes its own time. With overlap no step is shorter than that share of a decode step's fixed price.

    `prefill_curve` stands in the place of `per_prefill_token_s` where prompt tokens are not in proportion: points of
    (lines of a step, seconds that they add to its fixed price), both rising, and empty where one price does. A step has
    a line for each prompt token and each row.

    A belief: what predicts from it is corrected by what steps then take. A simulator's truth is something else.
    """

    prefill_fixed_s: float
    decode_fixed_s: float
    per_prefill_token_s: float
    per_prefill_pair_s: float
    per_row_s: float
    per_row_context_s: float
    overlap: float = 0.0
    prefill_curve: PrefillCurve = ()

    def token_s(self, num_lines: float) -> float:
        """What a prompt token adds to a step of so many lines."""
        return self.per_prefill_token_s if not self.prefill_curve else curve_price(self.prefill_curve, num_lines)

    def for_steps_of(self, num_lines: float) -> "NodeCosts":
        """The same with one price for prompt tokens: that in steps of so many lines."""
        if not self.prefill_curve:
            return self
        return replace(self, per_prefill_token_s=self.token_s(num_lines), prefill_curve=())

    @property
    def mixed_fixed_s(self) -> float:
        """What a mixed step takes beside all that grows, where nothing hides."""
        return max(self.prefill_fixed_s, self.decode_fixed_s)

    def prefill_s(self, prompts_s: float) -> float:
        """A step of prompts alone; `prompts_s` grow with them."""
        return max(self.prefill_fixed_s + prompts_s, self.overlap * self.decode_fixed_s)

    def mixed_s(self, prompts_s: float, rows_s: float) -> float:
        """A mixed step: `prompts_s` grow with its prompts, `rows_s` with its rows."""
        return self.mixed_fixed_s + prompts_s + rows_s - self.overlap * self.hidden_s(prompts_s, rows_s)

    def hidden_s(self, prompts_s: float, rows_s: float, num_steps: float = 1.0) -> float:
        """How much of that many mixed steps would hide at full overlap: that of the prompts, or that of the rows."""
        fixed_s = self.mixed_fixed_s
        prompts_s += num_steps * (fixed_s - self.decode_fixed_s)
        return min(prompts_s, rows_s + num_steps * (fixed_s - self.prefill_fixed_s))

    def seconds(self, work: StepWork) -> float:
        """What so much work takes; of many steps together, all of a kind are taken to be alike."""
        if self.prefill_curve:
            return self.for_steps_of(work.lines_per_prefill_step).seconds(work)
        seconds = (
            self.prefill_fixed_s * work.num_prefill_steps
            + self.decode_fixed_s * work.num_decode_steps
            + self.per_prefill_token_s * work.prefill_tokens
            + self.per_prefill_pair_s * work.prefill_pairs
            + self.per_row_s * work.num_rows
            + self.per_row_context_s * work.row_context
        )
        if not work.num_mixed_steps:
            return seconds
        more_s = work.num_mixed_steps * (self.mixed_fixed_s - self.prefill_fixed_s)
        return seconds + more_s - self.overlap * self.hidden_of(work)

    def hidden_of(self, work: StepWork) -> float:
        """How much of this work would hide at full overlap."""
        return self.hidden_s(*self.mixed_parts(work), work.num_mixed_steps)

    def mixed_parts(self, work: StepWork) -> tuple[float, float]:
        """What grows with the prompts of its mixed steps, by their share of all prefill steps, and with their rows."""
        prompts_s = self.per_prefill_token_s * work.prefill_tokens + self.per_prefill_pair_s * work.prefill_pairs
        rows_s = self.per_row_s * work.mixed_rows + self.per_row_context_s * work.mixed_context
        return prompts_s * work.num_mixed_steps / max(1, work.num_prefill_steps), rows_s


def curve_price(curve: PrefillCurve, num_lines: float) -> float:
    """Seconds a token in a step of so many lines: straight between the points, beyond them as at the ends."""
    right = bisect_left(curve, (num_lines,))
    if right == len(curve):
        return curve[-1][1] / curve[-1][0]
    if not right:
        return curve[0][1] / curve[0][0]
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return (y0 + (y1 - y0) * (num_lines - x0) / (x1 - x0)) / num_lines


def with_prefill_curve(costs: NodeCosts, alone: Sequence[tuple[int, float]]) -> NodeCosts:
    """The same with a curve through steps of prompts alone, which attend to nothing before them, where the straight
    line is off by more than `CROOKED`. `alone`: (tokens, what the step took), tokens rising."""
    if all(abs(costs.prefill_s(_straight_s(costs, tokens)) / seconds - 1.0) <= CROOKED for tokens, seconds in alone):
        return costs
    added = [max(0.0, seconds - costs.prefill_fixed_s - _pairs_s(costs, tokens)) for tokens, seconds in alone]
    return replace(costs, prefill_curve=tuple(zip((n for n, _ in alone), accumulate(added, max), strict=True)))


def _pairs_s(costs: NodeCosts, tokens: int) -> float:
    return costs.per_prefill_pair_s * tokens * tokens / 2


def _straight_s(costs: NodeCosts, tokens: int) -> float:
    return costs.per_prefill_token_s * tokens + _pairs_s(costs, tokens)


def with_overlap(costs: NodeCosts, mixed: Sequence[tuple[float, float, float]]) -> NodeCosts:
    """The same prices with the overlap that fits mixed steps best, in relative terms.

    Each of them is (seconds that grow with its prompts, seconds that grow with its rows, what it took).
    """
    square = product = 0.0
    for prompts_s, rows_s, seconds in mixed:
        hidden = costs.hidden_s(prompts_s, rows_s) / seconds
        square += hidden * hidden
        product += hidden * ((costs.mixed_fixed_s + prompts_s + rows_s) / seconds - 1.0)
    return replace(costs, overlap=min(1.0, max(0.0, product / square)) if square else 0.0)
