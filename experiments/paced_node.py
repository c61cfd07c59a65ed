"""A node whose steps last what a cost table says: a tiny model computes them, then it waits. For experiment 07.

Everything is as live but how long steps take, so that machines, messages and decisions can be compared with simulated
ones on a machine that is not quiet: a node that waits takes next to no processor.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.live.host import NodeParts
from cluster.live.launcher import Progress
from cluster.live.node_process import main
from cluster.live.orders import NodeOrder
from cluster.simulated.counting import CountingExecutor
from cluster.simulated.truth import StepTruth
from cluster.simulated.truth_table import TableTruth
from core.ids import RequestId
from core.request import pack_tokens, unpack_tokens
from core.step import RowJoin, StepPlan, StepResult
from engine.cost_table import CostTable
from engine.executor import Executor
from experiments.live import PACED_TABLE


@dataclass(frozen=True, slots=True)
class PacedStep:
    """A step that was launched: what it really computes, and when it may be over."""

    plan: StepPlan
    result: StepResult
    seconds: float
    due_at: float

    @property
    def is_done(self) -> bool:
        """As on a CPU: nothing is planned ahead of it."""
        return True

    def collect(self) -> StepResult:
        """Waits for that."""
        time.sleep(max(0.0, self.due_at - time.monotonic()))
        return replace(self.result, duration_s=self.seconds)


class PacedExecutor:
    """Runs steps, and lets each last as long as the truth says. Owns: the count of rows beside the real executor's."""

    def __init__(self, executor: Executor, truth: StepTruth, block_size: int) -> None:
        endless: Mapping[RequestId, int] = defaultdict(lambda: 1 << 30)
        self._executor = executor
        self._truth = truth
        self._counting = CountingExecutor(block_size, endless)

    def launch(self, plan: StepPlan) -> PacedStep:
        """Computes at once; the rest is waiting."""
        began_at, counted = time.monotonic(), _without_prompts(plan)
        ahead = self._counting.begin(counted)
        seconds = self._truth.step_s(ahead.chunks, ahead.num_rows, ahead.row_context)
        result = self._executor.launch(plan).collect()
        self._counting.finish(counted, seconds)
        return PacedStep(plan, result, seconds, began_at + seconds)

    def close(self) -> None:
        """Lets go of the slab."""
        self._executor.close()


def _without_prompts(plan: StepPlan) -> StepPlan:
    """As simulated plans are, whose rows join with their answers only."""
    return replace(plan, joined=tuple(map(_without_prompt, plan.joined)))


def _without_prompt(join: RowJoin) -> RowJoin:
    return replace(join, token_ids=pack_tokens(unpack_tokens(join.token_ids)[join.num_prompt_tokens :]))


def build(order: NodeOrder, progress: Progress) -> NodeParts:
    """A node with the order's model, slowed down to the table."""
    from cluster.live.build import build_node

    parts = build_node(order, progress)
    executor = parts.executor
    assert isinstance(executor, Executor)
    truth = TableTruth(CostTable.read(Path(os.environ[PACED_TABLE])))
    return replace(parts, executor=PacedExecutor(executor, truth, order.settings.block_size))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), build)
