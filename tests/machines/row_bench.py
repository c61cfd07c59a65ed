"""A mixed node on a bench, for its rows: prompts of one step, results by hand, all checked after each event."""

from collections import deque
from collections.abc import Mapping, Sequence

from cluster.node import Node, NodeConfig
from core.commands import Command, Emit, RunStep, Tell
from core.events import AttemptEnd, AttemptFinished, Dropped, NodeEvent, StepDone, StepFailed, Submitted, TokensEmitted
from core.ids import AttemptId, GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVLayout
from core.mix import mix_of
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.step import StepPlan, StepResult, TokenLogprobs
from decode_worker.config import PreemptionCosts

HERE, G = NodeId("here@0"), GatewayId("g")
BLOCK_SIZE = 4
KV = KVLayout(1, 1, 1, BLOCK_SIZE, "float32")
EOS = 1
CHEAP_COPIES = PreemptionCosts(0.004, 0.0005, 0.00001, copy_s_per_block=0.0001)
DEAR_COPIES = PreemptionCosts(0.004, 0.0005, 0.00001, copy_s_per_block=1.0)


class RowBench:
    """One node with blocks of 4 tokens.

    Owns: the steps that it asked for and that have not ended, and who was reported how.
    """

    def __init__(
        self,
        num_blocks: int = 16,
        *,
        num_steps: int = 1,
        drafts: int = 0,
        saved: int = 0,
        costs: PreemptionCosts | None = CHEAP_COPIES,
        max_model_len: int = 64,
        node: NodeId = HERE,
    ) -> None:
        mix = mix_of("mixed", 64, 8)
        self.node = Node(
            node,
            NodeConfig(
                LayoutId("l"),
                KV,
                num_blocks,
                max_model_len,
                frozenset({EOS}),
                mix,
                num_steps,
                max_draft_tokens=drafts,
                max_saved_blocks=saved,
                costs=costs,
            ),
        )
        self.plans: deque[StepPlan] = deque()
        self.ends: dict[AttemptId, AttemptEnd] = {}
        self.emitted: list[TokensEmitted] = []
        self.now = 0.0

    @property
    def last(self) -> StepPlan:
        """The plan that was asked for last."""
        return self.plans[-1]

    def handle(self, event: NodeEvent) -> list[Command]:
        """One event; what is to be done because of it."""
        self.now += 0.01
        commands = self.node.handle(event, self.now)
        self.node.check()
        for command in commands:
            match command:
                case RunStep(plan):
                    self.plans.append(plan)
                case Emit(_, tokens):
                    self.emitted.append(tokens)
                case Tell(_, AttemptFinished(attempt, _, end)):
                    assert attempt not in self.ends, f"{attempt} ends twice"
                    self.ends[attempt] = end
        return commands

    def start(self, name: str, num_tokens: int, max_tokens: int = 32, priority: int = 0) -> AttemptId:
        """A request comes in; its prompt runs with the next step, and its row stays here."""
        ids = pack_tokens(range(10, 10 + num_tokens))
        sampling = SamplingParams(max_tokens)
        request = Request(RequestId(name), Prompt(num_tokens), ids, sampling, priority=priority)
        attempt = AttemptId(f"{name}#0")
        self.handle(Submitted(attempt, request, b"", G, HERE, 0.0))
        return attempt

    def step(
        self,
        won: Mapping[AttemptId, Sequence[int]] | None = None,
        *,
        failed: Sequence[AttemptId] = (),
        logprobs: bool = False,
    ) -> list[Command]:
        """The oldest step ends: each row has won a 7, unless told otherwise; all drafts were tried."""
        plan = self.plans.popleft()
        tokens = {attempt: (won or {}).get(attempt, (7,)) for attempt in plan.attempts if attempt not in failed}
        pairs = [(attempt, token) for attempt in tokens for token in tokens[attempt]]
        digests = tuple(bytes([block]) * 16 for block in plan.seal)
        result = StepResult(
            plan.step,
            tuple(attempt for attempt, _ in pairs),
            tuple(token for _, token in pairs),
            plan.seal,
            digests,
            0.01,
            tuple(TokenLogprobs(-float(token), 1) for _, token in pairs) if logprobs else (),
            num_drafts=plan.max_drafts,
            failed=tuple(failed),
        )
        return self.handle(StepDone(result))

    def fail_step(self) -> list[Command]:
        """The oldest step cannot be run."""
        return self.handle(StepFailed(self.plans.popleft().step, "broken"))

    def drop(self, attempt: AttemptId) -> list[Command]:
        """The scheduler gives an attempt up."""
        return self.handle(Dropped(attempt))

    def finish(self) -> None:
        """Steps end until none is left: nothing is held then but what is cached."""
        while self.plans:
            self.step()
        assert self.node.is_idle(), self.node.decode.attempts
        blocks = self.node.stats().blocks
        assert blocks.free + blocks.cached == blocks.capacity
