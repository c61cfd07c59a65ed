"""Step times from a table that was measured on a machine (`penstock profile`)."""

from dataclasses import dataclass, field

from cluster.simulated.truth import Chunks
from core.costs import NodeCosts
from engine.cost_belief import node_costs
from engine.cost_table import CostTable


@dataclass(frozen=True, slots=True)
class Covered:
    """The largest steps that were measured."""

    tokens: int
    before: int
    rows: int
    context: int

    @staticmethod
    def of(table: CostTable) -> "Covered":
        """By the table's own samples."""
        prefills = [step for step in table.steps if step.prefill_tokens]
        decodes = [step for step in table.steps if step.rows]
        return Covered(
            max(step.prefill_tokens for step in prefills),
            max(step.prefill_context for step in prefills),
            max(step.rows for step in decodes),
            max(step.context for step in decodes),
        )


@dataclass(slots=True)
class TableTruth:
    """Interpolates.

    Several chunks in one step are one chunk of all their tokens, after as many others as they have before them on
    average. Beyond the largest measured chunk a step costs that chunk's time per token, and attends like its pieces one
    after the other; beyond other ends of the table it grows in proportion. Mixed steps: as the table has it, the larger
    of the two for what grows with tokens, and both for what is attended to.
    """

    table: CostTable
    num_extrapolated: int = 0
    _covered: Covered = field(init=False)

    def __post_init__(self) -> None:
        self._covered = Covered.of(self.table)

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        """By the table."""
        covered = self._covered
        context = row_context / num_rows if num_rows else 0.0
        tokens = sum(n for n, _ in chunks)
        before = sum(n * c for n, c in chunks) / tokens if tokens else 0.0
        is_beyond = tokens > covered.tokens or before > covered.before
        self.num_extrapolated += is_beyond or num_rows > covered.rows or context > covered.context
        if tokens <= covered.tokens:
            return self.table.step_s(tokens, before, num_rows, context)
        return self._large_s(tokens, before) + self._rows_s(num_rows, context)

    def belief(self) -> NodeCosts:
        """What a live scheduler is told of this table."""
        return node_costs(self.table)

    def _large_s(self, tokens: int, before: float) -> float:
        piece, table = self._covered.tokens, self.table
        alone_s, seconds, done = table.step_s(piece, 0.0, 0, 0.0), 0.0, 0
        while done < tokens:
            part = min(piece, tokens - done)
            attended_s = table.step_s(part, before + done, 0, 0.0) - table.step_s(part, 0.0, 0, 0.0)
            seconds += alone_s * part / piece + attended_s
            done += part
        return seconds

    def _rows_s(self, num_rows: int, context: float) -> float:
        """What rows add to a step that is long anyway: what they attend to."""
        if not num_rows:
            return 0.0
        return self.table.step_s(0, 0.0, num_rows, context) - self.table.step_s(0, 0.0, num_rows, 0.0)
