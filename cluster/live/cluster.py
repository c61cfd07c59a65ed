"""A whole live cluster behind one object: what the gateway, the command line and tests start, ask and stop."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast, get_args

from cluster.gateway.cluster_state import ClusterState as GatewayView
from cluster.gateway.cluster_state import NodeState as GatewayNode
from cluster.gateway.keys import AccessSettings
from cluster.live.config import LiveConfig, NodeSlot
from cluster.live.flushing import Flushes
from cluster.live.gateways import Gateways, News
from cluster.live.handshake import ClusterToken
from cluster.live.head import Handle, Head, NodeState
from cluster.live.launcher import Launcher
from cluster.live.local import LocalLauncher
from cluster.live.orders import HeadPlace, NodeOrder
from cluster.live.planning import Planning
from cluster.live.post import no_services
from cluster.live.supervisor import OnProgress, SlotState, Supervisor
from cluster.live.token_file import kept_token
from core.commands import Command, Tell
from core.decisions import CapacityTarget, Decided, Decision, DecisionKind, OverrideLifted
from core.errors import ConfigError
from core.events import DrainAsked, Drained, Event, GatewayEvent, Overridden, SchedulerEvent
from core.flushing import Flushed
from core.ids import OPERATOR, PLANNER, SCHEDULER, GatewayId, NodeId
from core.mix import Mix
from core.whatif import WhatIfAsked

LOG = logging.getLogger("penstock.head")

ASKED_AGAIN_S = 0.05
"""A node is a member a moment before the scheduler hears of it; a drain that came between is asked for again."""
MAX_DECISIONS = 256


class SchedulerMachine(Protocol):
    """The scheduler, as its shell sees it."""

    def handle(self, event: SchedulerEvent, now: float) -> Sequence[Command]:
        """Takes one event in; the commands are to be carried out in order."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Who is there now, and what the slots are doing."""

    nodes: tuple[NodeState, ...]
    slots: tuple[SlotState, ...]


def _no_progress(slot: str, phase: str, share: float) -> None:
    """For callers who do not show it."""


class LiveCluster:
    """Head, supervisor and nodes of one cluster. To be made and used in one asyncio loop.

    Owns: all that it starts, and gives it back in `stop`; the last decisions, and how many nodes there should be by the
    last one of these (None: nobody said). Gateways join before `start`.
    """

    def __init__(
        self,
        config: LiveConfig,
        scheduler: SchedulerMachine,
        on_progress: OnProgress = _no_progress,
        launcher: Launcher | None = None,
    ) -> None:
        problems = config.problems()
        if problems:
            raise ConfigError(problems)
        self._config = config
        self._token = kept_token(config.token_file) if config.token_file else ClusterToken.mint()
        self._mixes = {slot.name: slot.mix for slot in config.slots}
        self._place: HeadPlace | None = None
        self._launcher = launcher or make_launcher(config)
        self._head = Head(f"head@{secrets.token_hex(4)}", self._token, config.timers)
        self._supervisor = Supervisor(self._launcher, self._head, self._order, on_progress)
        self._draining: dict[NodeId, asyncio.Future[int]] = {}
        self._flushes = Flushes(self._head.tell)
        self._gateways: Gateways | None = None
        self._planning = Planning(lambda answer: self._head.tell(SCHEDULER, answer))
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self.on_decided: Callable[[Decision], object] = lambda decision: None
        self.capacity: CapacityTarget | None = None
        self._head.register(SCHEDULER, cast(Handle, scheduler.handle), get_args(SchedulerEvent))
        self._head.register(OPERATOR, self._on_told, ())
        self._head.register(PLANNER, self._planning.handle, (WhatIfAsked,))

    async def start(self) -> None:
        """Returns when every node is ready. Raises ConfigError or NodeLost, and then nothing is left running."""
        try:
            services = self._gateways.add_to if self._gateways else no_services
            self._place = await self._head.start(await self._launcher.open(), self._config.port, services)
            await self._supervisor.start(self._config.slots)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends everything; gateways are told nothing more. Twice is fine."""
        for drained in self._draining.values():
            drained.cancel()
        if self._gateways is not None:
            await self._gateways.stop()
        await self._head.stop()
        await self._planning.stop()
        await self._supervisor.stop()
        await self._launcher.close()

    async def broken(self) -> str:
        """Waits until an invariant of the scheduler or a gateway is broken; the process must then go."""
        return await self._head.broken()

    # ── gateways ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def join(self, gateway: GatewayId, handle: Callable[[GatewayEvent, float], object]) -> None:
        """Hosts a gateway: what is addressed to it, and `Tick`, reach `handle`, which carries out its own commands."""

        def take(event: Event, now: float) -> None:
            handle(cast(GatewayEvent, event), now)

        self._head.register(gateway, take, get_args(GatewayEvent))

    def admit_gateways(self, news: News) -> None:
        """Gateways of other processes may join, from the start on, if they hold the token of `config.token_file`."""
        self._gateways = Gateways(self._head, self._token, news)

    def tell_access(self, access: AccessSettings) -> None:
        """Has gateways of other processes know who may call from now on."""
        if self._gateways is not None:
            self._gateways.tell_access(access)

    @property
    def address(self) -> str:
        """Where gateways of other processes join; empty before the start, and where none may."""
        return self._place.address if self._place is not None and self._gateways is not None else ""

    @property
    def gateways(self) -> tuple[GatewayId, ...]:
        """Those of other processes that are members now."""
        return self._head.gateways

    def tell(self, tell: Tell) -> None:
        """Carries a gateway's message away."""
        self._head.tell(tell.to, tell.event)

    def shown(self) -> GatewayView:
        """The cluster as a gateway shows it."""
        nodes = self._head.nodes()
        counters = (
            ("node_deaths", sum(slot.num_deaths for slot in self._supervisor.slots())),
            ("failed_fetches", sum(node.num_failed_fetches for node in nodes)),
            ("foreign_messages", self._head.num_foreign),
        )
        return GatewayView(tuple(_shown(node) for node in nodes), counters)

    # ── the operator ─────────────────────────────────────────────────────────────────────────────────────────────────

    def set_mixes(self, mixes: Mapping[str, Mix]) -> None:
        """Sets mixes by slot, for the nodes of now and those to come. Raises ConfigError for unknown names."""
        self._check_names(mixes)
        self._mixes |= mixes
        nodes = [state for state in self._head.nodes() if state.slot in mixes]
        told = tuple(mixes[state.slot] for state in nodes)
        self._head.tell(SCHEDULER, Overridden(tuple(state.node for state in nodes), told))

    def lift_mixes(self, slots: Iterable[str]) -> None:
        """Gives slots whose mix was set back to the controller. Raises ConfigError for unknown names."""
        self._check_names(slots := tuple(slots))
        nodes = tuple(state.node for state in self._head.nodes() if state.slot in slots)
        if nodes:
            self._head.tell(SCHEDULER, OverrideLifted(nodes))

    def add_node(self, slot: NodeSlot) -> None:
        """One more slot, which gets a node as soon as there is a place for it. Raises ConfigError for a name in use."""
        if slot.name in self._mixes:
            raise ConfigError([f"there is a node {slot.name!r} already"])
        self._mixes[slot.name] = slot.mix
        self._supervisor.add(slot)

    async def remove_node(self, slot: str) -> None:
        """Gives a slot up, with the node in it: drain it first, or what runs there begins again elsewhere.

        Raises ConfigError for an unknown name.
        """
        self._check_names((slot,))
        del self._mixes[slot]
        await self._supervisor.remove(slot)

    def reopen(self, slot: str, mix: Mix) -> None:
        """The next node of a slot begins with this mix; the one that is there is told nothing.

        Raises ConfigError for an unknown name.
        """
        self._check_names((slot,))
        self._mixes[slot] = mix

    async def drain(self, slot: str) -> int:
        """Closes a slot, and waits until its node is empty: rows go on elsewhere, what cannot move finishes there.

        Returns how many attempts were left when time was over, or the node was lost, or was given another mix. The slot
        stays closed until its mix is set. Cancelled by `stop`. Raises ConfigError for an unknown name.
        """
        self._check_names((slot,))
        self._mixes[slot] = replace(self._mixes[slot], accepts_prefill=False, accepts_decode=False)
        while (state := self._node_of(slot)) is not None:
            num_left = await self._drained(state.node)
            if num_left or not self._is_passed_over(slot, state.node):
                return num_left
            await asyncio.sleep(ASKED_AGAIN_S)
        return 0

    async def flush(self) -> dict[str, int | None]:
        """Has every node forget the KV that nobody uses; blocks by slot, None where there was no answer in time."""
        slots = {state.node: state.slot for state in self._head.nodes()}
        return {slots[node]: freed for node, freed in (await self._flushes.ask(slots)).items()}

    def _node_of(self, slot: str) -> NodeState | None:
        return next((state for state in self._head.nodes() if state.slot == slot), None)

    async def _drained(self, node: NodeId) -> int:
        drained = self._draining.get(node)
        if drained is None:
            drained = self._draining[node] = asyncio.get_running_loop().create_future()
            self._head.tell(SCHEDULER, DrainAsked(node))
        return await asyncio.shield(drained)

    def _is_passed_over(self, slot: str, node: NodeId) -> bool:
        """Whether a node is still open, though nobody opened it: the scheduler had not heard of it then."""
        state = self._node_of(slot)
        is_open = state is not None and state.node == node and state.mix.role != "closed"
        return is_open and self._mixes[slot].role == "closed"

    def _on_told(self, event: Event, now: float) -> None:
        """What the scheduler tells the operator; ticks mean nothing here."""
        if isinstance(event, Decided):
            self.decisions.append(event.decision)
            self.on_decided(event.decision)
            level = logging.WARNING if event.decision.kind is DecisionKind.INFEASIBLE else logging.INFO
            LOG.log(level, "%s", event.decision)
        elif isinstance(event, CapacityTarget):
            self.capacity = event
        elif isinstance(event, Flushed):
            self._flushes.take(event)
        elif isinstance(event, Drained) and event.node in self._draining:
            drained = self._draining.pop(event.node)
            if not drained.done():
                drained.set_result(event.num_left)

    def _check_names(self, slots: Iterable[str]) -> None:
        unknown = [name for name in slots if name not in self._mixes]
        if unknown:
            known = ", ".join(self._mixes)
            raise ConfigError([f"node {name!r} is not known; there are {known}" for name in unknown])

    def state(self) -> ClusterState:
        """The cluster now."""
        return ClusterState(self._head.nodes(), self._supervisor.slots())

    def _order(self, slot: NodeSlot) -> NodeOrder:
        assert self._place is not None, "nodes are started after the head"
        return NodeOrder(
            name=slot.name,
            mix=self._mixes[slot.name],
            settings=replace(self._config.node, device=slot.device or self._config.node.device),
            timers=self._config.timers,
            head=self._place,
            token=self._token,
        )


def _shown(node: NodeState) -> GatewayNode:
    return GatewayNode(
        node.node, node.pid, node.actor_id, node.mix, node.stats, node.num_bytes, node.num_fetches, node.transfers
    )


def make_launcher(config: LiveConfig) -> Launcher:
    """The launcher that the config names. Ray is imported only where it is asked for."""
    if config.launcher == "local":
        return LocalLauncher(config.node.num_threads)
    from cluster.live.ray_actors import RayLauncher

    return RayLauncher(config.ray, config.slots)
