"""One node under any order of events: nothing leaks, every token is right, and what is lent does not change."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cluster.node import Node, NodeConfig
from core.commands import Command, Emit, Revoke, RunStep, Tell
from core.errors import StepFailed as StepFailedError
from core.events import (
    AttemptFinished,
    Claimed,
    Dropped,
    Fenced,
    LeaseReleased,
    Lent,
    MigrateAsked,
    NodeEvent,
    Offered,
    PeerLost,
    Sealed,
    StepDone,
    StepFailed,
    Submitted,
    Tick,
)
from core.flushing import FlushAsked, Flushed
from core.ids import SCHEDULER, AttemptId, LayoutId, RequestId, attempt_id
from core.kv import KVHandle, block_keys, tail_key
from core.lifecycle import DecodeState
from core.mix import mix_of
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.step import StepPlan, StepResult
from engine.fake import FakeExecutor
from engine.fake_memory import FakeMemory
from engine.fake_truth import reference_tokens
from tests.machines.bench import BLOCK_SIZE, KV, D, G, P

EOS = frozenset({0})
NUM_BLOCKS = 12
WHOM = st.integers(0, 7)


class AnyOrderOfEvents(RuleBasedStateMachine):
    """A mixed node that prefills for itself and for `D`, which claims, releases and dies as it likes. Rows of its own
    are asked to go there, too.

    Owns: the memory, the steps in flight, and what each attempt was asked and has answered, and has offered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.executor = FakeExecutor(FakeMemory(NUM_BLOCKS, BLOCK_SIZE))
        self.plans: list[StepPlan] = []
        self.requests: dict[AttemptId, Request] = {}
        self.answers: dict[AttemptId, list[int]] = {}
        self.live: list[AttemptId] = []
        self.offered: dict[AttemptId, list[KVHandle]] = {}
        self.now = 0.0

    @initialize(num_steps=st.integers(1, 2), tokens_per_step=st.sampled_from((3, 8, 32)), num_drafts=st.integers(0, 2))
    def start(self, num_steps: int, tokens_per_step: int, num_drafts: int) -> None:
        mix = mix_of("mixed", tokens_per_step, 4)
        config = NodeConfig(LayoutId("l"), KV, NUM_BLOCKS, 64, EOS, mix, num_steps, max_draft_tokens=num_drafts)
        self.node = Node(P, config)

    @rule(
        num=st.integers(1, 3), stem=st.integers(0, 1), num_tokens=st.integers(1, 13), max_tokens=st.integers(1, 9),
        is_kept=st.booleans(), is_scored=st.sampled_from((False, False, False, True)),
    )  # fmt: skip
    def submit(self, num: int, stem: int, num_tokens: int, max_tokens: int, is_kept: bool, is_scored: bool) -> None:
        """Choices of one prompt; all prompts of a stem begin alike."""
        packed = pack_tokens((stem * 13 + i * i) % 50 + 1 for i in range(num_tokens))
        prompt = Prompt(num_tokens, block_keys(packed, BLOCK_SIZE), tail_key(packed, BLOCK_SIZE))
        sampling = SamplingParams(max_tokens, seed=stem, prompt_logprobs=0 if is_scored else None)
        for choice in range(num):
            name = RequestId(f"r{len(self.requests)}")
            request = Request(name, prompt, packed, replace(sampling, choice=choice))
            attempt = attempt_id(request.id, 0)
            self.requests[attempt], self.answers[attempt] = request, []
            self.live.append(attempt)
            self.handle(Submitted(attempt, request, b"", G, P if is_kept else D, 0.0))

    @rule(num=st.integers(1, 4))
    def end_steps(self, num: int) -> None:
        for _ in range(num):
            self.end_step()

    @rule(whom=WHOM)
    def fail_a_row(self, whom: int) -> None:
        """One of those that sample has logits that are no numbers."""
        self.end_step(whom)

    @rule()
    def break_step(self) -> None:
        if self.plans:
            plan = self.plans.pop(0)
            self.executor.forget(plan)
            self.handle(StepFailed(plan.step, "broken"))

    def end_step(self, whom: int | None = None) -> None:
        if self.plans:
            plan = self.plans.pop(0)
            try:
                self.handle(StepDone(self.run(plan, whom)))
            except StepFailedError as error:
                self.executor.forget(plan)
                self.handle(StepFailed(plan.step, str(error)))

    def run(self, plan: StepPlan, whom: int | None) -> StepResult:
        self.executor.begin(plan)
        for attempt, num_tokens in zip(plan.attempts, plan.num_tokens, strict=True):
            self.executor.advance(attempt, num_tokens)
        sampled = self.executor.sampled
        failing = () if whom is None or not sampled else (sampled[whom % len(sampled)],)
        return self.executor.finish(plan, 0.0, failing)

    @rule(whom=WHOM)
    def drop(self, whom: int) -> None:
        if self.live:
            self.handle(Dropped(self.live[whom % len(self.live)]))

    @rule(whom=WHOM)
    def claim(self, whom: int) -> None:
        if self.live:
            attempt = self.live[whom % len(self.live)]
            self.handle(Claimed(attempt, D))
            self.handle(Lent(attempt, D))

    @rule(whom=WHOM, has_all=st.booleans())
    def release(self, whom: int, has_all: bool) -> None:
        if self.live:
            self.handle(LeaseReleased(self.live[whom % len(self.live)], D, has_all))

    @rule(whom=WHOM, num_before=st.integers(0, 3), num_steps=st.integers(0, 3))
    def migrate(self, whom: int, num_before: int, num_steps: int) -> None:
        """A row that decodes, if there is one after a few steps; with enough further ones it is offered."""
        self.end_steps(num_before)
        decoding = [at for at in self.live if self.node.decode.state_of(at) is DecodeState.DECODING]
        if asked := decoding or self.live:
            self.handle(MigrateAsked(asked[whom % len(asked)], D))
            self.end_steps(num_steps)

    @rule()
    def lose_the_reader(self) -> None:
        for command in self.handle(PeerLost(D)):
            if isinstance(command, Revoke):
                self.handle(Fenced(command.attempt, command.reader))

    @rule()
    def flush(self) -> None:
        num_cached = self.node.pool.counts().cached
        commands = self.handle(FlushAsked(1))
        assert commands[0] == Tell(SCHEDULER, Flushed(P, 1, num_cached))

    @rule(seconds=st.sampled_from((0.1, 11.0)))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Tick())

    def teardown(self) -> None:
        """Steps end, the reader goes: nothing is left but cached blocks, and all attempts were reported gone."""
        while self.plans:
            self.end_step()
        self.lose_the_reader()
        while self.plans:
            self.end_step()
        assert self.node.is_idle(), f"{self.node.prefill.attempts} {self.node.decode.attempts}"
        blocks = self.node.stats().blocks
        assert blocks.free + blocks.cached == NUM_BLOCKS
        assert self.live == []

    def handle(self, event: NodeEvent) -> list[Command]:
        commands = self.node.handle(event, self.now)
        for command in commands:
            match command:
                case RunStep(plan):
                    self.plans.append(plan)
                case Emit(_, tokens):
                    for attempt, token_id in zip(tokens.attempts, tokens.token_ids, strict=True):
                        self.take(attempt, token_id)
                case Tell(_, AttemptFinished(attempt)) if attempt in self.live:
                    self.live.remove(attempt)
                case Tell(_, Offered(attempt) | Sealed(attempt) as event):
                    self.offered.setdefault(attempt, []).append(event.handle)
        self.check()
        return commands

    def check(self) -> None:
        """What is held is held for somebody, and the source of a copy as long as its step is in flight."""
        self.node.check()
        copying = [join for plan in self.plans for join in plan.joined if join.copied_from is not None]
        assert self.node.pool.num_held == len(copying)
        self.offered = {at: parts for at, parts in self.offered.items() if self.node.prefill.leases.of(at) is not None}
        for handle in (handle for parts in self.offered.values() for handle in parts):
            found = tuple(self.executor.memory.digest(block) for block in handle.block_ids)
            assert found == handle.digests, f"{handle.attempt}: a block changes that is lent"

    def take(self, attempt: AttemptId, token_id: int) -> None:
        answer = self.answers[attempt]
        answer.append(token_id)
        right = reference_tokens(self.requests[attempt], EOS)[0]
        assert tuple(answer) == right[: len(answer)], f"{attempt} answers {answer} instead of {right}"


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
