"""How much of the KV blocks that are held holds nothing, under a mixed load on a real node's machine."""

from dataclasses import dataclass
from random import Random

from cluster.bench.node_loop import Ask, NodeLoop
from cluster.node import Node, NodeConfig
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import KVLayout
from core.mix import mix_of
from core.stats import BlockCounts
from core.step import StepPlan, StepResult
from engine.fake import FakeExecutor
from engine.fake_memory import SLOT_BYTES, FakeMemory
from engine.fake_truth import VOCAB_SIZE

NUM_REQUESTS = 64
NUM_BLOCKS = 8192
MAX_ROWS = 16
PREFILL_TOKENS = 512
LONGEST_PROMPT, LONGEST_ANSWER = 2048, 512
MEAN_PROMPT, MEAN_ANSWER = 755.0, 200.0
"""Means of the ShareGPT requests that DistServe was measured with."""


class Occupancy:
    """Counts, step by step, the tokens that rows have stored and the blocks that are held for them.

    Owns: each row's progress, and the shares of each step.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._stored: dict[AttemptId, int] = {}
        self._shares: list[float] = []

    def watch(self, plan: StepPlan, counts: BlockCounts) -> None:
        """A step is about to run."""
        for attempt in plan.left:
            self._stored.pop(attempt, None)
        for join in plan.joined:
            self._stored[join.attempt] = join.num_computed
        for attempt, num in zip(plan.attempts, plan.num_tokens, strict=True):
            self._stored[attempt] += num
        held = (counts.capacity - counts.free - counts.cached) * self._block_size
        if held:
            self._shares.append(1 - sum(self._stored.values()) / held)

    @property
    def waste(self) -> float:
        """The mean share of what is held that holds nothing."""
        return sum(self._shares) / len(self._shares)


@dataclass(frozen=True, slots=True)
class Finished:
    """A step that is over already."""

    result: StepResult

    def collect(self) -> StepResult:
        """What it came to."""
        return self.result


class Pretended:
    """The fake executor, which finishes a step when it is launched: only the machine's accounting is looked at."""

    def __init__(self, executor: FakeExecutor) -> None:
        self._executor = executor

    def launch(self, plan: StepPlan) -> Finished:
        """Run it at once."""
        return Finished(self._executor.run(plan))


def kv_waste(block_size: int, seed: int = 0) -> float:
    """Run the load: prompts and answers with the lengths of a chat trace, exponential, all there from the start."""
    chance = Random(seed)
    layout = KVLayout(1, 1, SLOT_BYTES // 8, block_size, "float32")
    config = NodeConfig(
        layout=LayoutId("pretended"),
        kv=layout,
        num_blocks=NUM_BLOCKS,
        max_model_len=LONGEST_PROMPT + LONGEST_ANSWER,
        eos_token_ids=frozenset(),
        mix=mix_of("mixed", PREFILL_TOKENS, MAX_ROWS),
    )
    occupancy = Occupancy(block_size)
    executor = FakeExecutor(FakeMemory(NUM_BLOCKS, block_size))
    loop = NodeLoop(Node(NodeId("pretended@1"), config), Pretended(executor), occupancy.watch)
    loop.run([_ask(chance) for _ in range(NUM_REQUESTS)])
    return occupancy.waste


def _ask(chance: Random) -> Ask:
    prompt = min(LONGEST_PROMPT, 1 + round(chance.expovariate(1 / MEAN_PROMPT)))
    answer = min(LONGEST_ANSWER, 1 + round(chance.expovariate(1 / MEAN_ANSWER)))
    return Ask(tuple(chance.randrange(VOCAB_SIZE) for _ in range(prompt)), answer)
