"""A simulated fleet whose pods an API server in memory knows: real scheduler, nodes and streams in virtual time."""

from dataclasses import dataclass
from random import Random

from cluster.kube.fleet import FleetNode, Phase, Wish
from cluster.simulated.fleet import FleetFault
from cluster.simulated.fleet_world import Circumstances, FleetWorld, Load
from core.decisions import OverrideLifted
from core.events import DrainAsked, Drained, Overridden
from core.goodput import Outcome
from core.ids import NodeId
from core.mix import mix_of
from scheduler.policies.build import policy_of
from scheduler.scheduler import Scheduler
from tests.simulated.fleets import LAX, fleet, node, varied

NEVER = 1e9
MOST = 6
"""Nodes of each group that the world knows by name."""


@dataclass
class Slot:
    """One slot: where its node is, how far its drain, and which node it is to have no longer."""

    group: str
    pod: str = ""
    node: NodeId | None = None
    is_draining: bool = False
    is_empty: bool = False
    is_given_up: bool = False
    renewed: NodeId | None = None


class SimFleet:
    """A `Fleet`, and the machines that pods are. Owns: the world, the slots, and the places that pods give.

    `num_killed_busy`: nodes that were ended while attempts were booked on them. Has to stay 0.
    """

    def __init__(self, num_requests: int, rate_rps: float, seed: int, groups: dict[str, int]) -> None:
        self.chance = Random(seed)
        names = [(f"{group}-{i}", group) for group in groups for i in range(MOST)]
        whole = fleet(*(node(name, group) for name, group in names))
        there = {f"{group}-{i}" for group, count in groups.items() for i in range(count)}
        faults = tuple(FleetFault(NEVER, name, "join") for name, _ in names if name not in there)
        scheduler = Scheduler(whole.scheduler, policy_of(whole.policy, whole.scheduler))
        load = Load(varied(num_requests, rate_rps, seed), LAX, 1e6)
        self.world = FleetWorld(whole, scheduler, load, Circumstances(faults), seed)
        self.slots: dict[str, Slot] = {}
        self.places: dict[str, tuple[str, str]] = {}
        for name in sorted(there):
            self.slots[name] = Slot(name.rpartition("-")[0], node=self.world._alive[name])
        self.asked: Wish | None = None
        self.num_killed_busy = 0
        self._num_heard = 0

    # ── the fleet ────────────────────────────────────────────────────────────────────────────────────────────────────

    def nodes(self) -> tuple[FleetNode, ...]:
        self._hear()
        return tuple(self._shown(name, slot) for name, slot in sorted(self.slots.items()))

    def _shown(self, name: str, slot: Slot) -> FleetNode:
        host = self.places.get(slot.pod, ("", ""))[1] if slot.node is not None else ""
        if slot.renewed is not None:
            return FleetNode(name, slot.group, Phase.STARTING, host=host)
        if slot.is_given_up or slot.is_empty:
            phase = Phase.EMPTY
        elif slot.is_draining:
            phase = Phase.DRAINING
        else:
            phase = Phase.STARTING if slot.node is None else Phase.SERVING
        return FleetNode(name, slot.group, phase, slot.node, host, self._num_booked(slot))

    def wish(self) -> Wish | None:
        return self.asked

    def add(self, group: str) -> str:
        name = next(n for n in (f"{group}-{i}" for i in range(MOST)) if n not in self.slots)
        self.slots[name] = Slot(group)
        self.settle()
        return name

    def drain(self, slot: str) -> None:
        it = self.slots[slot]
        it.renewed = None
        if it.node is None:
            it.is_given_up = True
            return
        it.is_draining = True
        self.world._schedule(DrainAsked(it.node))

    def keep(self, slot: str) -> None:
        it = self.slots[slot]
        it.is_draining = it.is_empty = it.is_given_up = False
        it.renewed = None
        if it.node is not None:
            plan = self.world._plans[slot]
            mix = mix_of(plan.role, plan.prefill_tokens_per_step, plan.max_decode_rows)
            self.world._schedule(Overridden((it.node,), (mix,)))
            self.world._schedule(OverrideLifted((it.node,)))
        self.settle()

    def remove(self, slot: str) -> None:
        it = self.slots.pop(slot)
        if it.node is not None:
            self._end(slot, it)

    def renew(self, slot: str) -> None:
        it = self.slots[slot]
        it.is_draining = it.is_empty = False
        it.renewed = it.node

    # ── the machines ─────────────────────────────────────────────────────────────────────────────────────────────────

    def pod_came(self, name: str, group: str, ip: str) -> None:
        self.places[name] = (group, ip)
        self.settle()

    def pod_went(self, name: str) -> None:
        del self.places[name]
        for slot, it in self.slots.items():
            if it.pod == name:
                if it.node is not None:
                    self._end(slot, it)
                it.pod, it.node, it.renewed = "", None, None
        self.settle()

    def settle(self) -> None:
        """Slots that have no place get a free one of their group, and a little later a node."""
        used = {slot.pod for slot in self.slots.values()}
        for name, slot in sorted(self.slots.items()):
            free = [pod for pod, (group, _) in self.places.items() if group == slot.group and pod not in used]
            if not slot.pod and not slot.is_given_up and free:
                slot.pod = free[0]
                used.add(free[0])
                if slot.node is None:
                    self.world.loop.after(self.chance.uniform(0.5, 4.0), self._join, name, slot.pod)

    def _join(self, name: str, pod: str) -> None:
        slot = self.slots.get(name)
        if slot is None or slot.pod != pod or slot.is_given_up or slot.node is not None:
            return
        self.world.join(name)
        slot.node = self.world._alive[name]

    def _end(self, name: str, slot: Slot) -> None:
        self.num_killed_busy += self._num_booked(slot) > 0
        self.world.lose(name, 0.1)

    def _num_booked(self, slot: Slot) -> int:
        views = self.world.scheduler.view.nodes
        return len(views[slot.node].bookings) if slot.node in views else 0

    def _hear(self) -> None:
        """What the scheduler told the operator meanwhile: a drain that ended early is begun again."""
        heard = self.world.for_operator[self._num_heard :]
        self._num_heard = len(self.world.for_operator)
        by_node = {slot.node: slot for slot in self.slots.values() if slot.node is not None}
        for event in heard:
            slot = by_node.get(event.node) if isinstance(event, Drained) else None
            if slot is None or not slot.is_draining or not isinstance(event, Drained):
                continue
            if event.num_left:
                self.world._schedule(DrainAsked(event.node))
            else:
                slot.is_empty = True

    # ── the account ──────────────────────────────────────────────────────────────────────────────────────────────────

    def outcomes(self) -> set[Outcome | None]:
        """How requests ended."""
        return {client.outcome for client in self.world.door.clients.values()}
