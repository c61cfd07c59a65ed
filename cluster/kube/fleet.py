"""What a RayCluster has, what the cluster behind it does, and what is to change: values, and the one that decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from core.ids import NodeId


class Phase(StrEnum):
    """What a node does, for whoever adds and removes nodes. A slot that was given up while it started is empty."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    EMPTY = "empty"


GOING = (Phase.DRAINING, Phase.EMPTY)


@dataclass(frozen=True, slots=True)
class FleetNode:
    """A slot of the cluster. `host`: the address of its node's pod, empty without a node; `load`: attempts there.

    One that starts and has a host waits there for the end of the pod that it is to have no longer.
    """

    slot: str
    group: str
    phase: Phase
    node: NodeId | None = None
    host: str = ""
    load: int = 0


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """One worker group of a RayCluster. `to_delete`: the pods that its operator was told to end; `template`: a digest
    of what its pods are made of now, empty where nobody wrote one."""

    name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    to_delete: tuple[str, ...] = ()
    template: str = ""


@dataclass(frozen=True, slots=True)
class Pod:
    """A worker pod that is not about to end. `ip` is empty until it has one; `template` is what it was made of."""

    name: str
    group: str
    ip: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A RayCluster at one moment. `fleet_size`: how many nodes an outside mover wants, None where there is none;
    `ending`: the pods that are still there and about to end."""

    groups: tuple[WorkerGroup, ...]
    pods: tuple[Pod, ...]
    fleet_size: int | None = None
    ending: tuple[str, ...] = ()

    @property
    def num_old_pods(self) -> int:
        """Pods of another template than their group has now."""
        groups = {group.name: group for group in self.groups}
        return sum(pod.group in groups and is_old(pod, groups[pod.group]) for pod in self.pods)


@dataclass(frozen=True, slots=True)
class Wish:
    """How many nodes there should be; those named should go first."""

    num_nodes: int
    remove: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupChange:
    """A worker group as it should be written."""

    name: str
    replicas: int
    to_delete: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now: `add` names groups, the others slots. Those in `remove` go only after `write` was accepted, and
    those in `renew` wait from then on for the nodes of other pods."""

    add: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    write: tuple[GroupChange, ...] = ()
    remove: tuple[str, ...] = ()
    renew: tuple[str, ...] = ()


@dataclass(slots=True)
class _Side:
    """One group while a plan is made: the object's side, and the cluster's."""

    group: WorkerGroup
    nodes: list[FleetNode]
    pods: list[Pod]
    replicas: int
    named: list[str]

    @property
    def kept(self) -> list[FleetNode]:
        return [node for node in self.nodes if node.phase not in GOING]

    def own_pod(self, node: FleetNode) -> Pod | None:
        """The pod that it runs in; None for one that runs nowhere, or in a pod that is about to end."""
        return next((pod for pod in self.pods if node.host and pod.ip == node.host), None)

    def is_leaving(self, node: FleetNode) -> bool:
        """Whether it runs in a pod that ends, was named to end, or was made of an older template."""
        own = self.own_pod(node)
        return node.host != "" and (own is None or own.name in self.named or is_old(own, self.group))

    def pod_of(self, node: FleetNode) -> Pod | None:
        """Where it runs. For a node that runs nowhere: a pod that certainly has no other node in it, or one about to
        join; where nodes start, that is a pod without an address."""
        own = self.own_pod(node)
        if own is not None:
            return own
        taken = {each.host for each in self.nodes if each.host}
        starts = any(each.phase is Phase.STARTING for each in self.nodes)
        free = [pod for pod in self.pods if pod.ip not in taken and pod.name not in self.named]
        return next((pod for pod in sorted(free, key=lambda pod: pod.ip != "") if not (pod.ip and starts)), None)


class Planner:
    """Decides, from what is there, what is done next. One write changes a group by at most `max_step`.

    `may_lower_blindly`: whether a group that has fewer pods than replicas may lose one replica without naming a pod.
    Its operator picks one itself where a pod has come meanwhile, so that is for groups whose pods do not come at all.
    """

    def __init__(self, max_step: int, may_lower_blindly: Callable[[str], bool]) -> None:
        self._max_step = max_step
        self._may_lower_blindly = may_lower_blindly

    def plan(self, view: ClusterView, nodes: Sequence[FleetNode], wish: Wish | None) -> Plan:
        """The next steps; nothing where all is as it should be. Slots of other groups are left alone."""
        sides = [self._side(group, view, nodes) for group in view.groups]
        add = [side.group.name for side in sides for _ in range(side.replicas - len(side.nodes))]
        kept = sum(len(side.kept) for side in sides) + len(add)
        renewal = _Renewal.of(sides)
        wanted = kept + (renewal is not None) if wish is None else _within(wish.num_nodes, view.groups)
        renewal = renewal if kept < wanted else None
        drain, keep = list[str](), _taken_back(sides)
        if kept < wanted:
            missing = wanted - kept - (renewal is not None)
            called_off = self._call_off(sides, missing, renewal)
            self._raise(sides, missing - len(called_off))
            keep += called_off
        elif wish is not None and not add:
            drain = self._choose(sides, kept - wanted, wish)
        renew = renewal.carry_out() if renewal else ()
        remove = self._give_back(sides, renewal)
        write = self._writes(sides)
        if not (add or drain or keep or write):
            drain = _oldest(sides)
        return Plan(tuple(add), tuple(drain), tuple(keep), write, tuple(remove), renew)

    def _side(self, group: WorkerGroup, view: ClusterView, nodes: Sequence[FleetNode]) -> _Side:
        pods = [pod for pod in view.pods if pod.group == group.name]
        there = {pod.name for pod in pods}
        named = [name for name in group.to_delete if name in there]
        mine = [node for node in nodes if node.group == group.name]
        return _Side(group, mine, pods, group.replicas, named)

    def _is_given_back(self, side: _Side, node: FleetNode) -> bool:
        own = side.own_pod(node)
        return own is None or own.name in side.named

    def _call_off(self, sides: Sequence[_Side], num: int, renewal: "_Renewal | None") -> list[str]:
        """Drains that need not go on, of the busiest nodes first; a node whose pod was named already is lost to us."""
        draining = [
            node
            for side in sides
            for node in side.nodes
            if node.phase in GOING
            and len(side.nodes) <= side.replicas
            and not self._is_named(side, node)
            and not (renewal and renewal.node == node)
        ]
        chosen = sorted(draining, key=lambda node: (-node.load, node.slot))[:num]
        for side in sides:
            side.nodes = [_serving(node) if node in chosen else node for node in side.nodes]
        return [node.slot for node in chosen]

    def _is_named(self, side: _Side, node: FleetNode) -> bool:
        return any(pod.ip == node.host and pod.name in side.named for pod in side.pods)

    def _raise(self, sides: Sequence[_Side], num: int) -> None:
        """More replicas, where a group is furthest below its share; the smallest sizes say what the shares are."""
        for _ in range(min(num, self._max_step)):
            room = [side for side in sides if side.replicas < side.group.max_replicas]
            if not room:
                return
            side = min(room, key=lambda each: (each.replicas + 1) / max(1, each.group.min_replicas))
            side.replicas += 1

    def _choose(self, sides: Sequence[_Side], num: int, wish: Wish) -> list[str]:
        """Who goes: those that only start, then those that the wish names, then those with the least load."""
        order = {node: place for place, node in enumerate(wish.remove)}
        num_going = sum(len(side.nodes) - len(side.kept) for side in sides)
        left = {side.group.name: len(side.kept) - side.group.min_replicas for side in sides}
        ranked = sorted(
            (node for side in sides for node in side.kept),
            key=lambda node: (
                node.phase is not Phase.STARTING,
                order.get(node.node, len(order)) if node.node is not None else 0,
                node.load,
                node.slot,
            ),
        )
        chosen = list[str]()
        for node in ranked:
            if len(chosen) < min(num, self._max_step - num_going) and left[node.group] > 0:
                left[node.group] -= 1
                chosen.append(node.slot)
        return chosen

    def _give_back(self, sides: Sequence[_Side], renewal: "_Renewal | None") -> list[str]:
        """The empty slots that can be removed, with their replicas and pods.

        More slots than replicas: a write of ours whose answer was lost; or somebody else's hand, which we undo.
        """
        removed = list[str]()
        for side in sides:
            over = max(0, len(side.nodes) - side.group.replicas)
            for node in [each for each in side.nodes if each.phase is Phase.EMPTY]:
                if renewal and renewal.node == node:
                    continue
                if over > 0 and self._is_given_back(side, node):
                    over -= 1
                elif not self._lower(side, node):
                    continue
                removed.append(node.slot)
            side.replicas += over
        return removed

    def _lower(self, side: _Side, node: FleetNode) -> bool:
        """One replica fewer, with the pod that it is; whether that could be done."""
        lowered = side.group.replicas - side.replicas
        if lowered >= self._max_step or side.replicas <= side.group.min_replicas:
            return False
        pod = side.pod_of(node)
        if pod is None and not self._may_lower_blindly(side.group.name):
            return False
        side.replicas -= 1
        if pod is not None:
            side.named.append(pod.name)
        return True

    def _writes(self, sides: Sequence[_Side]) -> tuple[GroupChange, ...]:
        return tuple(
            GroupChange(side.group.name, side.replicas, tuple(side.named))
            for side in sides
            if side.replicas != side.group.replicas or not set(side.named) <= set(side.group.to_delete)
        )


@dataclass(frozen=True, slots=True)
class _Renewal:
    """A node that is drained because its pod is to be another: one at a time, and only where it is wanted again."""

    side: _Side
    node: FleetNode

    @classmethod
    def of(cls, sides: Sequence[_Side]) -> "_Renewal | None":
        """The one that is on its way; where more nodes are going, the one that is furthest."""
        going = [
            cls(side, node)
            for side in sides
            for node in side.nodes
            if node.phase in GOING and len(side.nodes) <= side.replicas and side.is_leaving(node)
        ]
        return min(going, key=lambda each: (each.node.phase is not Phase.EMPTY, each.node.slot), default=None)

    def carry_out(self) -> tuple[str, ...]:
        """Names the pod of a node that is empty; its slot, which waits for the next one."""
        if self.node.phase is not Phase.EMPTY:
            return ()
        own = self.side.own_pod(self.node)
        if own is not None and own.name not in self.side.named:
            self.side.named.append(own.name)
        return (self.node.slot,)


def is_old(pod: Pod, group: WorkerGroup) -> bool:
    """Whether it was made of another template than its group has now; where either says none, nobody knows."""
    return "" not in (pod.template, group.template) and pod.template != group.template


def without_old_pods(view: ClusterView) -> tuple[GroupChange, ...]:
    """For a cluster without any node: every pod of an older template goes at once, and as many come again."""
    found = list[GroupChange]()
    for group in view.groups:
        old = tuple(pod.name for pod in view.pods if pod.group == group.name and is_old(pod, group))
        if not set(old) <= set(group.to_delete):
            found.append(GroupChange(group.name, group.replicas, old))
    return tuple(found)


def _taken_back(sides: Sequence[_Side]) -> list[str]:
    """Slots that wait for the end of a pod which nobody names any more: somebody has written over our names."""
    waiting = [(side, node) for side in sides for node in side.nodes if node.phase is Phase.STARTING and node.host]
    pods = [(node, side.own_pod(node), side.named) for side, node in waiting]
    return [node.slot for node, own, named in pods if own is not None and own.name not in named]


def _oldest(sides: Sequence[_Side]) -> list[str]:
    """The next node whose pod is to be renewed: none while any other comes or goes, nor where no other would serve."""
    nodes = [node for side in sides for node in side.nodes]
    if len(nodes) < 2 or any(node.phase is not Phase.SERVING for node in nodes):
        return []
    pods = [(node, side.own_pod(node), side.group) for side in sides for node in side.nodes]
    old = [node for node, own, group in pods if own is not None and is_old(own, group)]
    return [node.slot for node in sorted(old, key=lambda node: (node.load, node.slot))[:1]]


def _serving(node: FleetNode) -> FleetNode:
    return FleetNode(node.slot, node.group, Phase.SERVING, node.node, node.host, node.load)


def _within(num_nodes: int, groups: Sequence[WorkerGroup]) -> int:
    """Never none at all: a fleet of none can be asked nothing, and would never be missed."""
    low, high = sum(group.min_replicas for group in groups), sum(group.max_replicas for group in groups)
    return max(1, low, min(num_nodes, high))
