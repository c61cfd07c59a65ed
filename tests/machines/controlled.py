"""A controller over nodes that only exist in the view: arrivals in, mixes out, in virtual time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from core.commands import Command, Tell
from core.costs import NodeCosts
from core.decisions import CapacityTarget, Decided, Decision, DecisionKind
from core.events import NodeJoined, NodeLost, RequestArrived
from core.ids import PLANNER, GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVLayout
from core.mix import NodeSpec, mix_of
from core.request import SLO, Prompt, Request, SamplingParams
from core.whatif import WhatIfAsked
from scheduler.config import SchedulerConfig
from scheduler.controller import Controller, ControllerConfig
from scheduler.policies.least_loaded import LeastLoaded
from scheduler.scheduler import Scheduler

COSTS = NodeCosts(0.004, 0.0045, 2e-5, 4e-10, 2e-6, 3e-8)
"""Near an 8 B model on one large GPU."""

KV = KVLayout(32, 8, 128, 64, "bfloat16")
TICK_S = 0.25


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of load: so many requests per second, all of these lengths give or take `spread`."""

    seconds: float
    rate_rps: float
    prompt_tokens: int
    output_tokens: int
    spread: float = 0.5


@dataclass
class Bench:
    """A scheduler with a controller; what it said, and the mixes it told since the start."""

    config: ControllerConfig
    roles: tuple[str, ...] = ("mixed",) * 4
    costs: tuple[NodeCosts, ...] = ()
    chunk: int = 2048
    seed: int = 1
    now: float = 0.0
    decisions: list[Decision] = field(default_factory=list)
    targets: list[CapacityTarget] = field(default_factory=list)
    asked: list[WhatIfAsked] = field(default_factory=list)
    changed_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        self.controller = Controller(self.config)
        self.scheduler = Scheduler(SchedulerConfig(), LeastLoaded(), self.controller)
        self._num = 0
        for i, role in enumerate(self.roles):
            self.join(f"n{i}@0", role, self.costs[i] if self.costs else COSTS)

    def join(self, name: str, role: str, costs: NodeCosts = COSTS) -> None:
        """One more node."""
        spec = NodeSpec(LayoutId("l"), KV, 12_500, 131_072, mix_of(role, self.chunk, 256), costs)
        self.take(self.scheduler.handle(NodeJoined(NodeId(name), spec), self.now))

    def lose(self, name: str) -> None:
        """One node less."""
        self.take(self.scheduler.handle(NodeLost(NodeId(name), "gone"), self.now))

    def run(self, *phases: Phase) -> "Bench":
        """Poisson arrivals of each phase in turn. Requests are load and nothing else: none is ever routed."""
        for phase in phases:
            self._teach(phase)
            end, next_tick = self.now + phase.seconds, self.now + TICK_S
            for at in (*_arrivals(self.now, end, phase.rate_rps, self.chance), end):
                while next_tick <= at:
                    self.now = next_tick
                    next_tick += TICK_S
                    self.take(self.scheduler.ratio.tick(self.now))
                self.now = at
                self._arrive(phase)
        return self

    def take(self, commands: list[Command]) -> None:
        """Keep what was told."""
        for command in commands:
            assert isinstance(command, Tell)
            match command.event:
                case Decided(decision):
                    self.decisions.append(decision)
                    if decision.kind in (DecisionKind.RATIO, DecisionKind.BUDGET):
                        self.changed_at.append(self.now)
                case CapacityTarget() as target:
                    self.targets.append(target)
                case WhatIfAsked() as asked:
                    assert command.to == PLANNER
                    self.asked.append(asked)
                case _:
                    pass

    @property
    def now_roles(self) -> dict[str, str]:
        """What each node accepts, by name."""
        return {str(node): view.mix.role for node, view in sorted(self.scheduler.view.nodes.items())}

    def count(self, role: str) -> int:
        """Nodes of one role."""
        return list(self.now_roles.values()).count(role)

    def of_kind(self, *kinds: DecisionKind) -> list[Decision]:
        """Decisions of these kinds."""
        return [decision for decision in self.decisions if decision.kind in kinds]

    def _arrive(self, phase: Phase) -> None:
        self._num += 1
        low, high = 1 - phase.spread, 1 + phase.spread
        prompt = Prompt(max(1, round(phase.prompt_tokens * self.chance.uniform(low, high))))
        params = SamplingParams(2 * phase.output_tokens)
        request = Request(RequestId(f"r{self._num}"), prompt, b"", params, self.slo, 0, _tenant(phase))
        self.scheduler.ratio.observe(RequestArrived(request, GatewayId("g")), self.now)

    def _teach(self, phase: Phase) -> None:
        """Each phase has a tenant of its own, whose answers' lengths are known."""
        for i in range(100):
            share = 1 + phase.spread * (2 * (i + 0.5) / 100 - 1)
            self.scheduler.view.lengths.learn(_tenant(phase), 0, max(1, round(phase.output_tokens * share)))

    slo: SLO = SLO(2.0, 0.02)  # noqa: RUF009 - frozen


def _tenant(phase: Phase) -> str:
    return f"answers of {phase.output_tokens}"


def _arrivals(start: float, end: float, rate_rps: float, chance: Random) -> Iterator[float]:
    at = start + chance.expovariate(rate_rps)
    while at < end:
        yield at
        at += chance.expovariate(rate_rps)
