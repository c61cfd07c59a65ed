"""What a live node's shell adds to an executor's steps: planning, messages, the change of threads, its neighbours."""

from dataclasses import dataclass

from cluster.simulated.truth import Chunks, StepTruth
from core.costs import NodeCosts


@dataclass(slots=True)
class HostedTruth:
    """Steps as an executor takes them, and what passes before the next one can begin.

    A table of `penstock profile` is measured without machines and messages around the executor. `per_step_s` is added
    to every step, `per_row_s` for each row that decodes in it and each chunk. `core_share`: what gateway and clients
    leave of the node's processor. `told`: what the scheduler is told of the node; None: the straight line closest to
    the executor's steps, for nodes report how long steps took, not what passes between them.
    """

    bare: StepTruth
    per_step_s: float
    per_row_s: float = 0.0
    core_share: float = 1.0
    told: NodeCosts | None = None

    @property
    def num_extrapolated(self) -> int:
        """Of the executor's steps."""
        return self.bare.num_extrapolated

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        """Both together."""
        added_s = self.per_step_s + self.per_row_s * (num_rows + len(chunks))
        return (self.bare.step_s(chunks, num_rows, row_context) + added_s) / self.core_share

    def belief(self) -> NodeCosts:
        """As it is told."""
        return self.told or self.bare.belief()
