"""A live cluster as its operators see it: what was set by hand, what was drained, what was decided."""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace

from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.operator import DecisionFeed, SlotView
from cluster.live.cluster import LiveCluster
from cluster.live.config import NodeSlot
from core.decisions import Decision, DecisionKind, MixStep
from core.mix import Mix
from scheduler.controller import ControllerConfig


class ClusterOperator:
    """An `Operator` of a live cluster, to be made before it starts.

    Owns: which slots were set by hand, which were drained and by which drain, and the decisions. `count` tells further
    counters of this process, by name.
    """

    def __init__(self, cluster: LiveCluster, slots: Iterable[NodeSlot], controller: ControllerConfig | None) -> None:
        self._cluster = cluster
        self._begun = {slot.name: slot.mix for slot in slots}
        self._controller = controller
        self._set: dict[str, Mix] = {}
        self._drained: dict[str, int] = {}
        self._num_drains = 0
        self._feed = DecisionFeed()
        self.count: Callable[[], tuple[tuple[str, int], ...]] = tuple
        cluster.on_decided = self._feed.put

    def shown(self) -> ClusterState:
        """The cluster now, with its decisions."""
        capacity = self._cluster.capacity
        wanted = None if capacity is None else capacity.num_nodes
        feed, shown = self._feed, self._cluster.shown()
        counters = (*shown.counters, *self.count())
        return replace(shown, counters=counters, decisions=feed.recent, wanted_nodes=wanted, decided=feed.counts)

    def slots(self) -> tuple[SlotView, ...]:
        """Every slot now; budgets that a closed mix has lost are those it began with."""
        state = self._cluster.state()
        nodes = {node.slot: node for node in state.nodes}
        return tuple(
            SlotView(
                name=slot.name,
                state=slot.phase,
                mix=self._mix(slot.name, nodes[slot.name].mix if slot.name in nodes else None),
                node=nodes[slot.name].node if slot.name in nodes else None,
                num_deaths=slot.num_deaths,
                is_overridden=slot.name in self._set,
                is_drained=slot.name in self._drained,
                host=nodes[slot.name].host if slot.name in nodes else "",
            )
            for slot in state.slots
        )

    def controller(self) -> str:
        """`on`, `advise` or `off`."""
        if self._controller is None:
            return "off"
        return "advise" if self._controller.advises else "on"

    def set_mixes(self, mixes: Mapping[str, Mix]) -> None:
        """Sets mixes by hand. Raises ConfigError for unknown names."""
        self._record("the operator sets mixes", mixes)
        self._cluster.set_mixes(mixes)
        self._set |= mixes
        for slot in mixes:
            self._drained.pop(slot, None)

    def lift_mixes(self, slots: Iterable[str]) -> None:
        """Gives slots back, with the mixes they began with until the controller wants others.

        Raises ConfigError for unknown names.
        """
        slots = tuple(slots)
        by_hand = [name for name in slots if name in self._set or name in self._drained]
        begun = {name: self._begun[name] for name in by_hand}
        self._record("the operator gives nodes back", begun)
        self._cluster.set_mixes(begun)
        self._cluster.lift_mixes(slots)
        for name in by_hand:
            self._set.pop(name, None)
            self._drained.pop(name, None)

    def add_node(self, slot: NodeSlot) -> None:
        """One more slot. Raises ConfigError for a name in use."""
        self._cluster.add_node(slot)
        self._begun[slot.name] = slot.mix

    async def remove_node(self, slot: str) -> None:
        """Gives a slot up, with the node in it. Raises ConfigError for an unknown name."""
        self._begun.pop(slot, None)
        self._set.pop(slot, None)
        self._drained.pop(slot, None)
        await self._cluster.remove_node(slot)

    async def drain(self, slot: str, for_restart: bool = False) -> int:
        """Closes a slot and waits until its node is empty; how many attempts were left.

        `for_restart`: the node after this one has the slot's mix again, unless the slot was drained anew meanwhile.
        """
        closed = replace(self._begun[slot], accepts_prefill=False, accepts_decode=False)
        self._record("the operator drains a node", {slot: closed})
        self._num_drains = number = self._num_drains + 1
        self._drained[slot] = number
        num_left = await self._cluster.drain(slot)
        if for_restart and self._drained.get(slot) == number:
            del self._drained[slot]
            self._cluster.reopen(slot, self._set.get(slot, self._begun[slot]))
        return num_left

    async def flush(self) -> Mapping[str, int | None]:
        """Has every node forget the KV that nobody uses; how many blocks each slot's freed, None: it did not say."""
        return await self._cluster.flush()

    def watch(self, num_past: int) -> AsyncIterator[tuple[int, Decision]]:
        """Numbered decisions, the last `num_past` first and then each as it is made."""
        return self._feed.watch(num_past)

    def _record(self, reason: str, mixes: Mapping[str, Mix]) -> None:
        """Without a controller nobody else keeps records of what is done by hand."""
        if self._controller is not None:
            return
        nodes = {node.slot: node for node in self._cluster.state().nodes if node.slot in mixes}
        steps = tuple(MixStep(node.node, node.mix, mixes[slot]) for slot, node in nodes.items())
        if steps:
            self._feed.put(Decision(time.monotonic(), DecisionKind.OVERRIDE, reason, steps))

    def _mix(self, slot: str, now: Mix | None) -> Mix:
        begun = self._begun[slot]
        mix = now or self._set.get(slot, begun)
        if now is None and slot in self._drained:
            mix = replace(mix, accepts_prefill=False, accepts_decode=False)
        return replace(
            mix,
            prefill_tokens_per_step=mix.prefill_tokens_per_step or begun.prefill_tokens_per_step,
            max_decode_rows=mix.max_decode_rows or begun.max_decode_rows,
        )
