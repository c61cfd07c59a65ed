"""A node on a bench: events go in by hand, steps end when told to, and every invariant is checked after each event."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from cluster.node import Node, NodeConfig
from core.commands import Command, Emit, RunStep, Tell
from core.events import AttemptFinished, NodeEvent, StepDone, StepFailed, Submitted, TokensEmitted
from core.ids import AttemptId, GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVLayout, block_keys, tail_key
from core.mix import mix_of
from core.request import Prompt, Request, SamplingParams, num_packed, pack_tokens
from core.step import PromptLogprobs, RowJoin, StepPlan, StepResult, TokenLogprobs

P, D, G = NodeId("p@0"), NodeId("d@0"), GatewayId("g")
BLOCK_SIZE = 4
KV = KVLayout(1, 1, 1, BLOCK_SIZE, "float32")
EOS = 1
TOKEN = 7
"""What every row samples, unless told otherwise."""


class Bench:
    """One node `p@0` with blocks of 4 tokens.

    Owns: the steps that it asked for and that have not ended; all commands; how many known tokens each row has left.
    """

    def __init__(
        self, role: str = "prefill", num_blocks: int = 16, tokens_per_step: int = 16, num_steps: int = 1
    ) -> None:
        mix = mix_of(role, tokens_per_step, 8)
        self.node = Node(P, NodeConfig(LayoutId("l"), KV, num_blocks, 256, frozenset({EOS}), mix, num_steps))
        self.plans: deque[StepPlan] = deque()
        self.commands: list[Command] = []
        self.now = 0.0
        self._num_left: dict[AttemptId, int] = {}

    def handle(self, event: NodeEvent) -> list[Command]:
        """One event; what is to be done because of it."""
        self.now += 1.0
        commands = self.node.handle(event, self.now)
        self.node.check()
        self.commands += commands
        self.plans += [command.plan for command in commands if isinstance(command, RunStep)]
        return commands

    def submit(
        self, name: str, token_ids: Sequence[int], *, decode: NodeId = D, log: Sequence[int] = (), **sampling: int
    ) -> AttemptId:
        """A request over these tokens comes in."""
        packed = pack_tokens(token_ids)
        prompt = Prompt(len(token_ids), block_keys(packed, BLOCK_SIZE), tail_key(packed, BLOCK_SIZE))
        request = Request(RequestId(name), prompt, packed, replace(SamplingParams(max_tokens=8), **sampling))
        attempt = AttemptId(f"{name}#0")
        self.handle(Submitted(attempt, request, pack_tokens(log), G, decode, 0.0))
        return attempt

    def step(
        self, *, failed: Sequence[AttemptId] = (), token: int = TOKEN, logprob: float | None = None
    ) -> list[Command]:
        """The oldest step ends; rows whose tokens are all computed sample `token`, with its `logprob` if told."""
        plan, sampled, scored = self.plans.popleft(), [], []
        for join in plan.joined:
            self._num_left[join.attempt] = num_packed(join.token_ids) - join.num_computed
        for attempt, num_tokens in zip(plan.attempts, plan.num_tokens, strict=True):
            scored += self._scores(plan, attempt, num_tokens)
            self._num_left[attempt] -= num_tokens
            if self._num_left[attempt] == 0 and attempt not in failed:
                sampled.append(attempt)
                self._num_left[attempt] = 1
        digests = tuple(block.to_bytes(16, "little") for block in plan.seal)
        told = () if logprob is None else tuple(TokenLogprobs(logprob, 1) for _ in sampled)
        tokens = tuple(token for _ in sampled)
        result = StepResult(plan.step, tuple(sampled), tokens, plan.seal, digests, 0.01, told, tuple(scored))
        return self.handle(StepDone(replace(result, failed=tuple(failed))))

    def fail_step(self) -> list[Command]:
        """The oldest step cannot be run."""
        return self.handle(StepFailed(self.plans.popleft().step, "broken"))

    def run_dry(self) -> None:
        """Steps end until none is left."""
        for _ in range(200):
            if not self.plans:
                return
            self.step()
        raise AssertionError(f"it does not come to an end: {self.plans}")

    def join_of(self, attempt: AttemptId) -> RowJoin:
        """How a row was brought in."""
        plans = [command.plan for command in self.commands if isinstance(command, RunStep)]
        (join,) = [join for plan in plans for join in plan.joined if join.attempt == attempt]
        return join

    def num_prefilled(self, attempt: AttemptId) -> int:
        """Prompt tokens that were computed for an attempt, or will be by planned steps."""
        plans = [command.plan for command in self.commands if isinstance(command, RunStep)]
        rows = [row for plan in plans for row in zip(plan.attempts, plan.num_tokens, strict=True)]
        return sum(num_tokens for name, num_tokens in rows if name == attempt)

    def emitted(self, attempt: AttemptId) -> list[TokensEmitted]:
        """The messages with tokens of an attempt."""
        events = [command.tokens for command in self.commands if isinstance(command, Emit)]
        return [event for event in events if attempt in event.attempts]

    def ends(self) -> dict[AttemptId, str]:
        """How attempts were reported gone."""
        told = [command.event for command in self.commands if isinstance(command, Tell)]
        return {event.attempt: event.end.value for event in told if isinstance(event, AttemptFinished)}

    def _scores(self, plan: StepPlan, attempt: AttemptId, num_tokens: int) -> list[PromptLogprobs]:
        """As an executor scores prompts: the token after each computed one, under its own number as a probability."""
        join = self.join_of(attempt)
        if join.sampling.prompt_logprobs is None:
            return []
        first = num_packed(join.token_ids) - self._num_left[attempt] + 1
        end = min(first + num_tokens, join.num_prompt_tokens)
        scores = tuple(TokenLogprobs(-float(i), 1) for i in range(first, end))
        return [PromptLogprobs(attempt, first, scores)] if scores else []
