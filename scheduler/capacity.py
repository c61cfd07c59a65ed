"""How many nodes there should be at all: a target over minutes, for whoever can start and stop nodes."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.commands import Tell
from core.decisions import CapacityTarget, Decided, Decision, DecisionKind, Fact
from core.ids import OPERATOR, NodeId
from core.mix import Mix
from scheduler.closed_forms import Load
from scheduler.layouts import PlanNode, Search
from scheduler.plans import Forecaster, Goal
from scheduler.view import ClusterView

NEARLY = 0.98
"""Of what the largest fleet is forecast to meet, where not even that is enough."""


@dataclass(frozen=True, slots=True)
class CapacityConfig:
    """The target stays within `min_nodes` and `max_nodes`. It is what `headroom` times the load needs.

    Looked at every `interval_s`. It rises when `num_up` looks in a row ask for more, at once to the largest of them; it
    falls when for `down_s` no look asked for as many, to the largest of that time.
    """

    min_nodes: int = 2
    max_nodes: int = 64
    headroom: float = 1.3
    interval_s: float = 10.0
    num_up: int = 2
    down_s: float = 300.0


class Capacity:
    """Owns: what was needed lately, and the target that was told last."""

    def __init__(self, config: CapacityConfig) -> None:
        self._config = config
        self._needs: deque[tuple[float, int]] = deque()
        self._since: float | None = None
        self._due_at = float("-inf")
        self.target: int | None = None

    def tick(self, nodes: Sequence[PlanNode], view: ClusterView, load: Load, goal: Goal, now: float) -> list[Tell]:
        """Looks, where it is time; tells a target that is another than the last one. `load` is what comes now."""
        self._since = now if self._since is None else self._since
        usable = [node for node in nodes if node.mix.role != "closed"]
        if now < self._due_at or not usable:
            return []
        self._due_at = now + self._config.interval_s
        needed = self._needed(usable, load.at(load.rate_rps * self._config.headroom), goal)
        self._needs.append((now, needed))
        while self._needs[0][0] < now - self._config.down_s:
            self._needs.popleft()
        target = self._next(len(usable) if self.target is None else self.target, now)
        if target == self.target or (self.target is None and target == len(usable)):
            return []
        before, self.target = self.target, target
        return self._told(usable, view, before, needed, load, now)

    def _next(self, target: int, now: float) -> int:
        latest = [needed for _, needed in self._needs][-self._config.num_up :]
        if len(latest) == self._config.num_up and min(latest) > target:
            return max(latest)
        assert self._since is not None
        most = max(needed for _, needed in self._needs)
        return most if now - self._since >= self._config.down_s and most < target else target

    def _needed(self, nodes: Sequence[PlanNode], load: Load, goal: Goal) -> int:
        """The fewest nodes, taken in turn from those that are there, with which enough meets the SLO. Where that is out
        of reach, for prompts that no node computes in time, say: with which nearly as much does as with the most that
        are allowed."""
        low, high = self._config.min_nodes, self._config.max_nodes
        forecaster = Forecaster(load, goal)
        enough = min(goal.target, NEARLY * _attainment(nodes, high, forecaster))
        while low < high:
            num = (low + high) // 2
            low, high = (low, num) if _attainment(nodes, num, forecaster) >= enough else (num + 1, high)
        return low

    def _told(
        self, nodes: Sequence[PlanNode], view: ClusterView, before: int | None, needed: int, load: Load, now: float
    ) -> list[Tell]:
        assert self.target is not None
        surplus = max(0, len(nodes) - self.target)
        remove = _least_loaded([node.node for node in nodes], view, surplus)
        word = "more" if self.target > (before or len(nodes)) else "fewer"
        reason = f"{word} nodes: {self.target} instead of {before or len(nodes)}"
        facts = (
            Fact("nodes", float(len(nodes))),
            Fact("needed_nodes", float(needed)),
            Fact("rate_rps", load.rate_rps),
            Fact("prompt_tokens", load.mean_prompt),
            Fact("output_tokens", load.mean_output),
        )
        decision = Decision(now, DecisionKind.CAPACITY, reason, (), facts)
        return [Tell(OPERATOR, Decided(decision)), Tell(OPERATOR, CapacityTarget(self.target, remove))]


def _attainment(nodes: Sequence[PlanNode], num: int, forecaster: Forecaster) -> float:
    """Of the best layout of so many nodes like these."""
    fleet = [replace(nodes[i % len(nodes)], node=NodeId(f"{i:04d}"), is_free=True) for i in range(num)]
    return max(option.forecast.attainment for option in Search(fleet, forecaster).options())


def _least_loaded(nodes: Sequence[NodeId], view: ClusterView, num: int) -> tuple[NodeId, ...]:
    """Nodes whose going costs least; none whose going would leave a phase to nobody."""
    chosen: list[NodeId] = []
    for node in sorted(nodes, key=lambda each: (view.nodes[each].share_booked, each)):
        left: list[Mix] = [v.base_mix for name, v in view.nodes.items() if name != node and name not in chosen]
        covers = any(mix.accepts_prefill for mix in left) and any(mix.accepts_decode for mix in left)
        if len(chosen) < num and covers:
            chosen.append(node)
    return tuple(chosen)
