"""Carries out on Kubernetes how many nodes there should be: worker pods come, or are drained and go.

A round looks at everything anew: the RayCluster, its pods, the nodes behind it. So a lost answer, a conflict or a
restart needs no case of its own. A node is drained before its pod is named for deletion, and its replica goes in the
same write. Where only the pod is to be another, because an upgrade has changed what pods are made of, the replica
stays: KubeRay makes the successor.
"""

import asyncio
import logging
import time
from dataclasses import asdict, dataclass, field
from typing import Protocol

from cluster.kube.cluster_api import ClusterApi, KubeError, Leadership, Trouble
from cluster.kube.fleet import ClusterView, FleetNode, GroupChange, Phase, Plan, Planner, Wish

LOG = logging.getLogger("penstock.kube")


class Fleet(Protocol):
    """The cluster whose nodes are added and removed."""

    def nodes(self) -> tuple[FleetNode, ...]:
        """Every slot now."""

    def wish(self) -> Wish | None:
        """What the scheduler asked for last; None before it did."""

    def add(self, group: str) -> str:
        """One more slot of a group, by its name; its node comes as soon as there is a place for it."""

    def drain(self, slot: str) -> None:
        """Begins to empty a node; its phase says how far that is. One that only starts is given up."""

    def keep(self, slot: str) -> None:
        """Calls a drain off."""

    def remove(self, slot: str) -> None:
        """Gives a slot up, which is empty."""

    def renew(self, slot: str) -> None:
        """Keeps a slot whose node is empty and whose pod ends: it waits for the node of another pod."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how much. `blind_s`: so long a group must have lacked pods before a replica goes without a name.

    After trouble that a human has to end (a missing right, a missing kind) or a server that does not answer, rounds
    are `interval_s` apart at first, then twice as far each time, up to `longest_pause_s`.
    """

    interval_s: float = 5.0
    write_every_s: float = 10.0
    max_step: int = 4
    blind_s: float = 60.0
    longest_pause_s: float = 60.0


@dataclass(slots=True)
class ScalingCounters:
    """What was done and what went wrong so far; all but the last four only rise.

    The last three are None where nothing was seen yet, or another process leads.
    """

    num_rounds: int = 0
    num_writes: int = 0
    num_added: int = 0
    num_drains: int = 0
    num_drains_called_off: int = 0
    num_removed: int = 0
    num_renewed: int = 0
    num_conflicts: int = 0
    num_forbidden: int = 0
    num_missing: int = 0
    num_invalid: int = 0
    num_unreachable: int = 0
    num_lost_events: int = 0
    is_leader: int = 0
    wanted_nodes: int | None = None
    pod_replicas: int | None = None
    old_pods: int | None = None

    def count(self, trouble: Trouble) -> None:
        """One more of a kind."""
        setattr(self, _COUNTED_AS[trouble], self.of(trouble) + 1)

    def of(self, trouble: Trouble) -> int:
        """So many of a kind."""
        return int(getattr(self, _COUNTED_AS[trouble]))

    def named(self) -> tuple[tuple[str, int], ...]:
        """Names and values, for metrics and the cluster's state."""
        told = ((name, value) for name, value in asdict(self).items() if value is not None)
        return tuple((f"kube_{name.removeprefix('num_')}", value) for name, value in told)


_COUNTED_AS = {
    Trouble.CONFLICT: "num_conflicts",
    Trouble.FORBIDDEN: "num_forbidden",
    Trouble.MISSING: "num_missing",
    Trouble.INVALID: "num_invalid",
    Trouble.UNREACHABLE: "num_unreachable",
}


@dataclass(slots=True)
class _Memory:
    """What outlives a round."""

    written_at: float = float("-inf")
    pause_s: float = 0.0
    short_since: dict[str, float] = field(default_factory=dict)
    told: str = ""


class FleetScaler:
    """Moves a RayCluster's replicas to the number of nodes that is wanted.

    Owns: the rounds and their pace, the counters, and `explanation`, what the last round did in words. Only it writes
    replicas, and only while it leads. Everything but `api` and `leadership` is used in one thread.
    """

    def __init__(self, api: ClusterApi, leadership: Leadership, fleet: Fleet, pace: Pace = Pace()) -> None:
        self._api = api
        self._leadership = leadership
        self._fleet = fleet
        self._pace = pace
        self._memory = _Memory()
        self._planner = Planner(pace.max_step, self._may_lower_blindly)
        self._now = 0.0
        self.counters = ScalingCounters()
        self.explanation = "nothing was looked at yet"

    async def run(self) -> None:
        """Rounds without end, the calls to Kubernetes in a thread."""
        while True:
            await asyncio.sleep(self.pause_s)
            try:
                view = await asyncio.to_thread(self._look)
                plan = self.decide(view, time.monotonic())
                if plan.write:
                    await asyncio.to_thread(self._api.write, plan.write)
                notes = self.carry_out(plan)
            except KubeError as error:
                notes = self.give_way(error)
            for note in notes:
                await asyncio.to_thread(self._tell, *note)

    def round(self, now: float) -> None:
        """One round, for a caller that may block."""
        try:
            plan = self.decide(self._look(), now)
            if plan.write:
                self._api.write(plan.write)
            notes = self.carry_out(plan)
        except KubeError as error:
            notes = self.give_way(error)
        for note in notes:
            self._tell(*note)

    @property
    def pause_s(self) -> float:
        """How long until the next round."""
        return max(self._pace.interval_s, self._memory.pause_s)

    def _look(self) -> ClusterView | None:
        """None where another process leads."""
        self.counters.num_rounds += 1
        self.counters.is_leader = int(self._leadership.holds())
        return self._api.read() if self.counters.is_leader else None

    # ── a round ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self, view: ClusterView | None, now: float) -> Plan:
        """What is to be done now; nothing is changed yet but since when pods are missing."""
        self._now = now
        if view is None:
            self.counters.wanted_nodes = self.counters.pod_replicas = self.counters.old_pods = None
            self.explanation = "another process holds the Lease"
            return Plan()
        self._note_missing_pods(view)
        wish = self._fleet.wish() if view.fleet_size is None else Wish(view.fleet_size)
        plan = self._planner.plan(view, self._fleet.nodes(), wish)
        if plan.write and now < self._memory.written_at + self._pace.write_every_s:
            plan = Plan(plan.add, plan.drain, plan.keep)  # the rest waits for the next write
        self.counters.pod_replicas = sum(group.replicas for group in view.groups)
        self.counters.wanted_nodes = self.counters.pod_replicas if wish is None else wish.num_nodes
        self.counters.old_pods = view.num_old_pods
        self.explanation = _explained(view, self._fleet.nodes(), wish)
        return plan

    def carry_out(self, plan: Plan) -> list[tuple[str, str, bool]]:
        """Adds, drains and removes nodes, once what was to be written is; returns what people are to be told."""
        counters, fleet, notes = self.counters, self._fleet, list[tuple[str, str, bool]]()
        if plan.write:
            self._memory.written_at = self._now
            counters.num_writes += 1
            reason = "Renewed" if plan.renew else "Scaled"
            notes.append((reason, f"{_numbers(plan.write)}; {self.explanation}", False))
        for group in plan.add:
            fleet.add(group)
            counters.num_added += 1
        for slot in plan.keep:
            fleet.keep(slot)
            counters.num_drains_called_off += 1
        for slot in plan.drain:
            fleet.drain(slot)
            counters.num_drains += 1
            notes.append(("Draining", f"{slot} takes nothing new, and its pod ends when it is empty", False))
        for slot in plan.remove:
            fleet.remove(slot)
            counters.num_removed += 1
        for slot in plan.renew:
            fleet.renew(slot)
            counters.num_renewed += 1
        self._memory.told, self._memory.pause_s = "", 0.0
        return notes

    def give_way(self, error: KubeError) -> list[tuple[str, str, bool]]:
        """A call failed: waits longer where waiting helps, and says so once for each kind."""
        self.counters.count(error.trouble)
        self.explanation = f"nothing is changed: {error}"
        if error.trouble is Trouble.CONFLICT:
            return []
        pause_s = max(self._pace.interval_s, 2 * self._memory.pause_s)
        self._memory.pause_s = min(pause_s, self._pace.longest_pause_s)
        if self._memory.told == error.trouble:
            return []
        self._memory.told = error.trouble
        LOG.warning("%s", error)
        return [] if error.trouble is Trouble.UNREACHABLE else [("CannotScale", str(error), True)]

    def _tell(self, reason: str, message: str, is_warning: bool) -> None:
        """Events are for people: one that cannot be written is counted, no more."""
        try:
            self._api.note(reason, message, is_warning)
        except KubeError:
            self.counters.num_lost_events += 1

    def _note_missing_pods(self, view: ClusterView) -> None:
        short = {g.name for g in view.groups if sum(pod.group == g.name for pod in view.pods) < g.replicas}
        since = self._memory.short_since
        self._memory.short_since = {name: since.get(name, self._now) for name in short}

    def _may_lower_blindly(self, group: str) -> bool:
        since = self._memory.short_since.get(group)
        return since is not None and self._now - since >= self._pace.blind_s


def _numbers(changes: tuple[GroupChange, ...]) -> str:
    told = [f"{change.name} at {change.replicas} replicas" for change in changes]
    gone = [name for change in changes for name in change.to_delete]
    return ", ".join(told) + (f" without {', '.join(gone)}" if gone else "")


def _explained(view: ClusterView, nodes: tuple[FleetNode, ...], wish: Wish | None) -> str:
    wanted = "no number of nodes was asked for" if wish is None else f"{wish.num_nodes} nodes are wanted"
    counts = [(phase, sum(node.phase is phase for node in nodes)) for phase in Phase]
    there = ", ".join(f"{count} {phase}" for phase, count in counts if count) or "none there"
    bounds = "; ".join(f"{g.name} {g.min_replicas} to {g.max_replicas}" for g in view.groups)
    old = f", {view.num_old_pods} pods of an older template" if view.num_old_pods else ""
    return f"{wanted}, {there}{old} ({bounds or 'no worker group of ours'})"
