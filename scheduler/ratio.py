"""What each node should accept: as the controller or the operator wants it, and that every phase is covered."""

from collections.abc import Iterable
from dataclasses import replace

from core.commands import Command, Tell
from core.decisions import Decided, Decision, DecisionKind, MixStep, OverrideLifted
from core.events import Event, MixChanged, Overridden
from core.ids import OPERATOR, RequestId, node_name
from core.mix import Mix
from core.whatif import WhatIfAnswered
from scheduler.config import SchedulerConfig
from scheduler.controller import Controller
from scheduler.mover import Mover
from scheduler.plan_nodes import WIDENED_DECODE_ROWS, WIDENED_PREFILL_TOKENS
from scheduler.view import ClusterView, NodeView


class Ratio:
    """Sets mixes.

    Owns: every node's `base_mix` but for drains, and the names of the nodes that the operator has set: a new
    incarnation of one of those is left to the operator too. Without a controller nodes keep the mix they joined with.
    """

    def __init__(self, config: SchedulerConfig, view: ClusterView, mover: Mover, controller: Controller | None) -> None:
        self._config = config
        self._view = view
        self._mover = mover
        self._controller = controller
        self._pinned: set[str] = set()
        self.num_unknown = 0

    def observe(self, event: Event, now: float) -> None:
        """The controller hears what the scheduler hears."""
        if self._controller is not None:
            self._controller.observe(event, self._view, now)

    def turned_away(self, request: RequestId) -> None:
        """The controller hears of a request that gets no answer."""
        if self._controller is not None:
            self._controller.attained.note_turned_away(request)

    def forgotten(self, request: RequestId) -> None:
        """The controller need not wait for the end of this one."""
        if self._controller is not None:
            self._controller.attained.note_gone(request)

    def override(self, event: Overridden, now: float) -> list[Command]:
        """The operator's mixes: the controller leaves these nodes alone until they are given back."""
        commands: list[Command] = []
        steps: list[MixStep] = []
        for node, mix in zip(event.nodes, event.mixes, strict=True):
            view = self._view.nodes.get(node)
            if view is None:
                self.num_unknown += 1
                continue
            steps.append(MixStep(node, view.base_mix, mix))
            view.base_mix = mix
            self._pinned.add(node_name(node))
            commands += self._mover.end_drain(node, len(view.bookings))
        return self.cover() + commands + self._told("the operator sets mixes", steps, now)

    def lift(self, event: OverrideLifted, now: float) -> list[Command]:
        """The operator gives nodes back, closed ones as they joined; what they should do comes with the next plan."""
        commands: list[Command] = []
        steps: list[MixStep] = []
        for node in event.nodes or [n for n in self._view.nodes if node_name(n) in self._pinned]:
            view = self._view.nodes.get(node)
            if view is None:
                self.num_unknown += 1
                continue
            self._pinned.discard(node_name(node))
            was = view.base_mix
            if was.role == "closed":
                view.base_mix = view.spec.mix
                commands += self._mover.end_drain(node, len(view.bookings))
            steps.append(MixStep(node, was, view.base_mix))
        if not event.nodes:
            self._pinned.clear()
        return self.cover() + commands + self._told("the operator gives nodes back", steps, now)

    def answer(self, event: WhatIfAnswered, now: float) -> list[Command]:
        """What the planner found."""
        if self._controller is None or not self._controller.answer(event, now):
            self.num_unknown += 1
        return []

    def tick(self, now: float) -> list[Command]:
        """What the controller wants now."""
        if self._controller is None:
            return []
        verdict = self._controller.tick(self._view, self._config, self._pinned, now)
        for node, mix in verdict.changes:
            self._view.nodes[node].base_mix = mix
        return [*self.cover(), *verdict.tells]

    def cover(self) -> list[Command]:
        """Tell mixes that changed: a phase that nobody accepts any more is taken over at once."""
        commands: list[Command] = []
        for view, mix in next_mixes(self._view.nodes.values()):
            view.mix = mix
            commands.append(Tell(view.node, MixChanged(mix)))
        self._view.era += bool(commands)
        return commands

    def _told(self, reason: str, steps: list[MixStep], now: float) -> list[Command]:
        """A record, where somebody keeps records: there is a controller that gives way."""
        if self._controller is None or not steps:
            return []
        return [Tell(OPERATOR, Decided(Decision(now, DecisionKind.OVERRIDE, reason, tuple(steps))))]


def next_mixes(nodes: Iterable[NodeView]) -> list[tuple[NodeView, Mix]]:
    """Mixes to tell, with the next epoch: the base mixes where those cover both phases, else every node does both."""
    views = list(nodes)
    covered = any(v.base_mix.accepts_prefill for v in views) and any(v.base_mix.accepts_decode for v in views)
    changes = []
    for view in views:
        wanted = view.base_mix if covered else widened(view.base_mix)
        if replace(wanted, epoch=view.mix.epoch) != view.mix:
            changes.append((view, replace(wanted, epoch=view.mix.epoch + 1)))
    return changes


def widened(mix: Mix) -> Mix:
    """The same node doing both phases. An operator's closed node stays closed."""
    if mix.role == "closed":
        return mix
    return Mix(
        True,
        True,
        min(mix.prefill_tokens_per_step, WIDENED_PREFILL_TOKENS) or WIDENED_PREFILL_TOKENS,
        mix.max_decode_rows or WIDENED_DECODE_ROWS,
        mix.epoch,
    )
