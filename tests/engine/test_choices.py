"""The machines of one node over the real executor: what is shared and copied gives the tokens that computing gives."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.node import Node, NodeConfig
from core.commands import Emit, RunStep
from core.events import NodeEvent, StepDone, Submitted, TokensEmitted
from core.ids import AttemptId, GatewayId, LayoutId, NodeId, RequestId
from core.kv import block_keys, tail_key
from core.mix import mix_of
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.step import StepPlan
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt

pytestmark = pytest.mark.slow

NODE = NodeId("m@0")
SAMPLING = {"temperature": 1.0, "seed": 9, "ignore_eos": True}


class RealNode:
    """A node that does both phases, whose steps are run one after the other by an executor.

    Owns: the machine, the steps that wait, and all token messages.
    """

    def __init__(self, bench: Bench, num_steps: int) -> None:
        config = NodeConfig(
            LayoutId("l"),
            bench.shape.layout,
            bench.shape.num_blocks,
            256,
            frozenset(),
            mix_of("mixed", 5, 8),
            num_steps,
        )
        self.node = Node(NODE, config)
        self.executor = bench.executor
        self.plans: list[StepPlan] = []
        self.events: list[TokensEmitted] = []

    def submit(self, name: str, token_ids: list[int], **sampling: object) -> AttemptId:
        packed, attempt = pack_tokens(token_ids), AttemptId(f"{name}#0")
        words = Prompt(len(token_ids), block_keys(packed, 4), tail_key(packed, 4))
        request = Request(RequestId(name), words, packed, SamplingParams(6, **{**SAMPLING, **sampling}))
        self.handle(Submitted(attempt, request, b"", GatewayId("g"), NODE, 0.0))
        return attempt

    def handle(self, event: NodeEvent) -> None:
        for command in self.node.handle(event, 0.0):
            match command:
                case RunStep(plan):
                    self.plans.append(plan)
                case Emit(_, tokens):
                    self.events.append(tokens)
        self.node.check()

    def run_dry(self) -> None:
        while self.plans:
            self.handle(StepDone(self.executor.run(self.plans.pop(0))))
        assert self.node.is_idle()

    def answer(self, attempt: AttemptId) -> list[int]:
        pairs = [pair for event in self.events for pair in zip(event.attempts, event.token_ids, strict=True)]
        return [token_id for name, token_id in pairs if name == attempt]


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 5, 6, 8, 13])
def test_choices_answer_as_if_each_had_computed_the_prompt_alone(
    make_folder: Callable[..., Path], bench: Callable[..., Bench], num_tokens: int, num_steps: int
) -> None:
    folder, token_ids = make_folder("qwen2"), prompt(num_tokens)
    alone = bench(folder)
    right = [alone.generate(f"alone{i}#0", token_ids, 6, choice=i, **SAMPLING) for i in range(3)]
    real = RealNode(bench(folder), num_steps)
    choices = [real.submit(f"c{i}", token_ids, choice=i) for i in range(3)]
    scored = real.submit("scored", token_ids, prompt_logprobs=1)
    real.run_dry()
    assert [real.answer(choice) for choice in choices] == right
    assert real.answer(scored) == right[0]
    assert real.node.prefill.num_cached_tokens == 2 * (num_tokens - 1)
    (scores,) = [
        told for event in real.events if scored in event.attempts for told in event.prompt_logprobs if told is not None
    ]
    assert len(scores) == num_tokens - 1
