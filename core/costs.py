"""What steps consist of and what that costs: the words in which nodes report and schedulers predict."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step consists of, or many steps together; every field adds up.

    A step with any prompt token is a prefill step, whatever else it does; one with rows only is a decode step.
    `prefill_pairs`: for each prompt token that is computed, the tokens it attends to (n tokens after c others:
    n·c + n²/2). `row_context`: tokens that decode rows attend to.
    """

    num_prefill_steps: int = 0
    num_decode_steps: int = 0
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    num_rows: int = 0
    row_context: int = 0

    def plus(self, other: "StepWork") -> "StepWork":
        """Both together."""
        return StepWork(
            self.num_prefill_steps + other.num_prefill_steps,
            self.num_decode_steps + other.num_decode_steps,
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_pairs + other.prefill_pairs,
            self.num_rows + other.num_rows,
            self.row_context + other.row_context,
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
        )


@dataclass(frozen=True, slots=True)
class NodeCosts:
    """Prices of a node's steps, in seconds: a straight line through what was measured or fitted.

    A belief: what predicts from it is corrected by what steps then take. A simulator's truth is something else.
    """

    prefill_fixed_s: float
    decode_fixed_s: float
    per_prefill_token_s: float
    per_prefill_pair_s: float
    per_row_s: float
    per_row_context_s: float

    def seconds(self, work: StepWork) -> float:
        """What so much work takes."""
        return (
            self.prefill_fixed_s * work.num_prefill_steps
            + self.decode_fixed_s * work.num_decode_steps
            + self.per_prefill_token_s * work.prefill_tokens
            + self.per_prefill_pair_s * work.prefill_pairs
            + self.per_row_s * work.num_rows
            + self.per_row_context_s * work.row_context
        )
