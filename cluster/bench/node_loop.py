"""One node in one process: its machine decides, this loop runs the steps and takes the tokens. No network, no clock
but the steps' own."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.node import Node
from core.commands import Command, Emit, RunStep, Tell
from core.events import AttemptEnd, AttemptFinished, NodeEvent, StepDone, Submitted
from core.ids import SCHEDULER, GatewayId, RequestId, attempt_id
from core.kv import block_keys, tail_key
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.stats import BlockCounts
from core.step import StepPlan, StepResult

GATEWAY = GatewayId("bench")
Watch = Callable[[StepPlan, BlockCounts], None]
"""Called with each plan, and with the pool as it is when the plan is made."""


class Launched(Protocol):
    """A step that the device has."""

    def collect(self) -> StepResult:
        """Waits for it."""


class Runner(Protocol):
    """What runs steps; a step may be launched before the one before it is collected."""

    def launch(self, plan: StepPlan) -> Launched:
        """Hands a step over."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, and how many tokens are to follow it."""

    token_ids: tuple[int, ...]
    num_tokens: int


class NodeLoop:
    """Answers prompts that all come at once, greedily and to their full length.

    Owns: the events not yet handled, and the steps launched and not collected.
    """

    def __init__(self, node: Node, runner: Runner, watch: Watch | None = None) -> None:
        self._node = node
        self._runner = runner
        self._watch = watch
        self._events: deque[NodeEvent] = deque()
        self._launched: deque[Launched] = deque()
        self._tokens: dict[str, list[int]] = {}
        self._num_asked = 0
        self._num_open = 0

    def run(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """The answers, in the order of the prompts; every block is back afterwards."""
        names = [self._submit(ask) for ask in asks]
        while self._events or self._launched:
            if self._events:
                self._act(self._node.handle(self._events.popleft(), time.monotonic()))
            else:
                self._events.append(StepDone(self._launched.popleft().collect()))
        assert not self._num_open, f"{self._num_open} prompts were not answered to their end"
        return [tuple(self._tokens.pop(name)) for name in names]

    def _submit(self, ask: Ask) -> str:
        number, size = self._num_asked, self._node.config.kv.block_size
        self._num_asked += 1
        self._num_open += 1
        packed = pack_tokens(ask.token_ids)
        prompt = Prompt(len(ask.token_ids), block_keys(packed, size), tail_key(packed, size))
        sampling = SamplingParams(max_tokens=ask.num_tokens, temperature=0.0, ignore_eos=True)
        attempt = attempt_id(RequestId(f"{number:032x}"), 0)
        request = Request(RequestId(f"{number:032x}"), prompt, packed, sampling)
        self._tokens[attempt] = []
        self._events.append(Submitted(attempt, request, b"", GATEWAY, self._node.node, 0.0))
        return attempt

    def _act(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case RunStep(plan):
                    if self._watch is not None:
                        self._watch(plan, self._node.pool.counts())
                    self._launched.append(self._runner.launch(plan))
                case Emit(_, tokens):
                    for attempt, token_id in zip(tokens.attempts, tokens.token_ids, strict=True):
                        self._tokens[attempt].append(token_id)
                case Tell(to, AttemptFinished(attempt, _, end)) if to == SCHEDULER:
                    assert end is AttemptEnd.FINISHED, f"{attempt} ended as {end}: the pool is too small"
                    self._num_open -= 1
                case _:
                    raise AssertionError(f"a node alone asked for {command}")
