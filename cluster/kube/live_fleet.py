"""The live cluster as a fleet whose nodes come and go."""

import asyncio
import logging
from collections.abc import Callable, Coroutine

from cluster.kube.fleet import FleetNode, Phase, Wish
from cluster.live.cluster import LiveCluster
from cluster.live.config import NodeSlot
from cluster.live.head import NodeState
from cluster.operating import ClusterOperator
from core.errors import ConfigError
from core.ids import NodeId

LOG = logging.getLogger("penstock.kube")
SlotMaker = Callable[[str, int], NodeSlot]
"""Makes the slot of a group with a number, such as `decode` and 3."""


class LiveFleet:
    """A `Fleet` of a live cluster, used in its loop.

    Owns: the drains that were begun here, the slots that were given up while they started, the nodes whose pods are
    to be others, and which slots a human had drained before: those stay closed.
    """

    def __init__(self, cluster: LiveCluster, operator: ClusterOperator, make: SlotMaker) -> None:
        self._cluster = cluster
        self._operator = operator
        self._make = make
        self._drains: dict[str, asyncio.Task[None]] = {}
        self._given_up: dict[str, str] = {}
        self._renewed: dict[str, NodeId] = {}
        self._closed_by_hand: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()

    def nodes(self) -> tuple[FleetNode, ...]:
        """Every slot, with those that were given up and still have a replica."""
        state = self._cluster.state()
        members = {node.slot: node for node in state.nodes}
        drained = self._drained()
        found = [FleetNode(slot, group, Phase.EMPTY) for slot, group in self._given_up.items()]
        for slot in state.slots:
            group, node = slot.name.rpartition("-")[0], members.get(slot.name)
            if slot.name in self._given_up:
                continue
            if self._waits(slot.name, node):
                host = "" if node is None else node.host
                found.append(FleetNode(slot.name, group, Phase.STARTING, host=host))
                continue
            if node is None:
                found.append(FleetNode(slot.name, group, self._phase_without(slot.name)))
                continue
            found.append(
                FleetNode(slot.name, group, self._phase(slot.name, drained), node.node, node.host, _load(node))
            )
        return tuple(sorted(found, key=lambda each: each.slot))

    def wish(self) -> Wish | None:
        """The scheduler's last target."""
        target = self._cluster.capacity
        return None if target is None else Wish(target.num_nodes, target.remove)

    def add(self, group: str) -> str:
        """A slot with the lowest number that is free."""
        names = {slot.name for slot in self._cluster.state().slots} | self._given_up.keys()
        number = next(i for i in range(len(names) + 1) if f"{group}-{i}" not in names)
        slot = self._make(group, number)
        self._operator.add_node(slot)
        return slot.name

    def drain(self, slot: str) -> None:
        """Until the node is empty, however long that takes; without a node the slot is given up at once."""
        if slot in self._drains or slot in self._given_up:
            return
        self._renewed.pop(slot, None)
        if slot not in {node.slot for node in self._cluster.state().nodes}:
            self._given_up[slot] = slot.rpartition("-")[0]
            self._end(self._operator.remove_node(slot))
            return
        if slot in self._drained():
            self._closed_by_hand.add(slot)
        self._drains[slot] = asyncio.create_task(self._empty(slot))

    def keep(self, slot: str) -> None:
        """Gives it back to the controller, with the mix it began with; a slot that was given up begins anew."""
        group = self._given_up.pop(slot, None)
        if group is not None:
            self.add(group)
            return
        drain = self._drains.pop(slot, None)
        is_renewed = self._renewed.pop(slot, None) is not None
        if drain is not None:
            drain.cancel()
        if (drain is not None or is_renewed) and slot not in self._closed_by_hand:
            self._operator.lift_mixes((slot,))
        self._closed_by_hand.discard(slot)

    def remove(self, slot: str) -> None:
        """The slot goes, and the node in it."""
        if self._given_up.pop(slot, None) is not None:
            return
        drain = self._drains.pop(slot, None)
        if drain is not None:
            drain.cancel()
        self._renewed.pop(slot, None)
        self._closed_by_hand.discard(slot)
        self._end(self._operator.remove_node(slot))

    def renew(self, slot: str) -> None:
        """The pod of its empty node ends: the slot waits for another node, which is open again."""
        drain = self._drains.pop(slot, None)
        if drain is not None:
            drain.cancel()
        node = next((node.node for node in self._cluster.state().nodes if node.slot == slot), None)
        if node is not None:
            self._renewed[slot] = node
        if slot not in self._closed_by_hand:
            self._end(self._reopen(slot))
        self._closed_by_hand.discard(slot)

    async def close(self) -> None:
        """Waits for nothing that was begun here any more."""
        tasks = [*self._drains.values(), *self._ending]
        for task in self._drains.values():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _phase(self, slot: str, drained: set[str]) -> Phase:
        """A node that was given a mix by hand while it drained, or after, serves again."""
        drain = self._drains.get(slot)
        if drain is not None and not drain.done():
            return Phase.DRAINING
        if drain is None or slot not in drained:
            self._drains.pop(slot, None)
            return Phase.SERVING
        return Phase.EMPTY

    def _phase_without(self, slot: str) -> Phase:
        """A node that was lost while it drained has nothing left to be drained of."""
        return Phase.EMPTY if slot in self._drains else Phase.STARTING

    def _waits(self, slot: str, node: NodeState | None) -> bool:
        """Whether the node that a slot has is not the one that it is to have."""
        if slot in self._renewed and node is not None and node.node != self._renewed[slot]:
            del self._renewed[slot]
        return slot in self._renewed

    async def _reopen(self, slot: str) -> None:
        await self._operator.drain(slot, for_restart=True)

    async def _empty(self, slot: str) -> None:
        while (num_left := await self._operator.drain(slot)) and slot in self._drained():
            LOG.warning("%s still has %d attempts: it is drained further", slot, num_left)
            await asyncio.sleep(1.0)

    def _drained(self) -> set[str]:
        return {slot.name for slot in self._operator.slots() if slot.is_drained}

    def _end(self, ending: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(_quietly(ending))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _load(node: NodeState) -> int:
    stats = node.stats
    return 0 if stats is None else stats.running_rows + stats.prefilling + stats.leases + stats.incoming


async def _quietly(ending: Coroutine[None, None, None]) -> None:
    """A slot that is gone already is what was wanted."""
    try:
        await ending
    except ConfigError as error:
        LOG.info("%s", error)
