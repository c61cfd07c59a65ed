"""What steps of paced nodes are taken to last (experiment 07)."""

from types import SimpleNamespace
from typing import cast

from cluster.simulated.truth import Chunks
from core.ids import AttemptId
from core.request import SamplingParams, pack_tokens
from core.step import RowJoin, StepPlan, StepResult
from engine.executor import Executor
from experiments.paced_node import PacedExecutor

BLOCK = 16
FRESH, HANDED_OVER = AttemptId("fresh/1"), AttemptId("handed-over/1")


class Asked:
    """A truth that remembers of what steps it was asked."""

    def __init__(self) -> None:
        self.steps: list[tuple[Chunks, int, int]] = []

    num_extrapolated = 0

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        self.steps.append((tuple(chunks), num_rows, row_context))
        return 0.0


def computing() -> Executor:
    """The real one, whose tokens nobody looks at."""
    result = StepResult(0, (), (), (), (), 0.0)
    return cast(Executor, SimpleNamespace(launch=lambda plan: SimpleNamespace(collect=lambda: result)))


def join(attempt: AttemptId, known: int, num_computed: int, num_prompt_tokens: int) -> RowJoin:
    """As live machines write it: with all tokens, those of the prompt among them."""
    blocks = tuple(range(-(-(known + BLOCK) // BLOCK)))
    tokens = pack_tokens(range(known))
    return RowJoin(attempt, tokens, num_computed, SamplingParams(8), blocks, (0,) * len(blocks), num_prompt_tokens)


def test_rows_that_decode_last_as_rows_and_prompts_as_chunks() -> None:
    truth = Asked()
    paced = PacedExecutor(computing(), truth, BLOCK)
    came = (join(FRESH, 40, 0, 40), join(HANDED_OVER, 21, 20, 20))
    paced.launch(StepPlan(1, (FRESH, HANDED_OVER), (32, 1), joined=came))
    paced.launch(StepPlan(2, (FRESH, HANDED_OVER), (8, 1)))
    paced.launch(StepPlan(3, (FRESH, HANDED_OVER), (1, 1)))
    assert truth.steps == [(((32, 0),), 1, 20), (((8, 32),), 1, 21), ((), 2, 40 + 22)]
