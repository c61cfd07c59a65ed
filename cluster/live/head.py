"""The head process: its machines in one loop, the post to the nodes, and who is a member of the cluster."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cluster.api.v1.post_pb2 import NodeReport, Peer, PeersChanged
from cluster.live.handshake import ClusterToken
from cluster.live.last_events import LastEvents
from cluster.live.launcher import RunningNode
from cluster.live.mail import Notice
from cluster.live.orders import HeadPlace
from cluster.live.post import AddServices, Post, no_services
from cluster.live.transfers import transfers_of
from core.commands import Command, Tell
from core.events import (
    Event,
    MixChanged,
    NodeJoined,
    NodeLost,
    RequestArrived,
    RequestCancelled,
    RequestResumed,
    StatsReported,
    StreamEnded,
    StreamSilent,
    Tick,
)
from core.ids import SCHEDULER, Address, GatewayId, NodeId
from core.membership import GatewayLost
from core.mix import Mix
from core.stats import NodeStats
from core.timers import Timers
from core.transfer import NO_TRANSFERS, TransferReport

LOG = logging.getLogger("penstock.head")
OF_A_GATEWAY = RequestArrived | RequestCancelled | RequestResumed | StreamEnded | StreamSilent
Handle = Callable[[Event, float], Iterable[Command] | None]
"""A machine's `handle`; None where what runs the machine carries out its commands itself."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """One member as it is now. `stats` are None until its first report; the transfer counts only rise."""

    node: NodeId
    slot: str
    pid: int
    actor_id: str
    mix: Mix
    num_blocks: int
    stats: NodeStats | None
    num_fetches: int
    num_failed_fetches: int
    num_bytes: int
    transfers: TransferReport = NO_TRANSFERS
    address: str = ""

    @property
    def host(self) -> str:
        """The address of its host; on Kubernetes its pod's."""
        return self.address.rpartition(":")[0].strip("[]")


@dataclass(frozen=True, slots=True)
class Membership:
    """The two moments of a member: the scheduler is told of it (cancelled where it is lost first), and it is lost."""

    joined: asyncio.Future[None]
    lost: asyncio.Future[str]


@dataclass(slots=True)
class _Member:
    slot: str
    running: RunningNode
    mix: Mix
    membership: Membership
    stats: NodeStats | None = None
    report: NodeReport = field(default_factory=NodeReport)


@dataclass(frozen=True, slots=True)
class _Registered:
    handle: Handle
    accepts: frozenset[type]
    last: LastEvents


class Head:
    """Hosts machines by their address and carries what they tell each other and the nodes.

    Owns: the queue of events for its machines, the post, and the list of members. Used from one asyncio loop only.
    """

    def __init__(self, me: str, token: ClusterToken, timers: Timers, term: int = 1) -> None:
        self.me = me
        self.term = term
        self._timers = timers
        self._post = Post(me, token, self, timers, term)
        self._machines: dict[Address, _Registered] = {}
        self._members: dict[NodeId, _Member] = {}
        self._gateways: dict[GatewayId, str] = {}
        self._queue: deque[tuple[Address, Event]] = deque()
        self._ticking: asyncio.Task[None] | None = None
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.num_foreign = 0

    async def start(self, host: str, port: int = 0, also: AddServices = no_services) -> HeadPlace:
        """Listens for nodes and begins to tick; where nodes find us. As `Post.start`."""
        address = await self._post.start(host, port, also)
        self._ticking = asyncio.create_task(self._tick())
        return HeadPlace(self.me, address, self.term)

    async def stop(self) -> None:
        """Leaves all links; machines are told nothing more. Twice is fine."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
            self._ticking = None
        self._queue.clear()
        self._machines.clear()
        await self._post.stop()

    async def broken(self) -> str:
        """Waits until an invariant of a machine is broken, and says which; the process must then go."""
        return await asyncio.shield(self._broken)

    # ── machines ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def register(self, address: Address, handle: Handle, accepts: Iterable[type]) -> None:
        """Hosts a machine: events of the types it accepts reach `handle`, and a `Tick` in every interval."""
        self._machines[address] = _Registered(handle, frozenset(accepts), LastEvents())

    def tell(self, address: Address, event: Event) -> None:
        """Queues an event for a machine of ours, or posts it to a node; a machine hears of it in a later loop turn."""
        if address in self._machines:
            if not self._queue:
                asyncio.get_running_loop().call_soon(self._drain)
            self._queue.append((address, event))
            return
        member = self._members.get(NodeId(address))
        if member is not None:
            if isinstance(event, MixChanged):
                member.mix = event.mix
            self._post.send(address, [(address, event)])

    def _drain(self) -> None:
        """One event after the other, for as long as there are, with those that the machines tell each other."""
        while self._queue:
            address, event = self._queue.popleft()
            machine = self._machines.get(address)
            if machine is not None and not self._handle(address, machine, event):
                self._queue.clear()

    def _handle(self, address: Address, machine: _Registered, event: Event) -> bool:
        now = time.monotonic()
        machine.last.note(event, now)
        try:
            for command in machine.handle(event, now) or ():
                assert isinstance(command, Tell), f"{address} asks for a {type(command).__name__}; only nodes may"
                self.tell(command.to, command.event)
        except Exception as error:
            LOG.critical("an invariant of %s is broken; its last events:", address)
            for line in machine.last.report():
                LOG.critical("%s", line)
            LOG.critical("the broken invariant:", exc_info=True)
            if not self._broken.done():
                self._broken.set_result(f"an invariant of {address} is broken: {type(error).__name__}: {error}")
            return False
        return True

    async def _tick(self) -> None:
        while True:
            for address in list(self._machines):
                self.tell(address, Tick())
            await asyncio.sleep(self._timers.tick_s)

    # ── members ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, slot: str, running: RunningNode) -> Membership:
        """A node runs: all nodes are told, and once its link stands, the scheduler."""
        started, loop = running.started, asyncio.get_running_loop()
        membership = Membership(loop.create_future(), loop.create_future())
        self._members[started.node] = _Member(slot, running, started.spec.mix, membership)
        self._post.admit(started.node, started.address)
        self._tell_peers()
        return membership

    def remove(self, node: NodeId, why: str) -> None:
        """A node is gone for good: the scheduler and the other nodes are told at once. Twice is fine."""
        member = self._members.pop(node, None)
        if member is None:
            return
        self._post.forget(node)
        self._tell_peers()
        if member.membership.joined.done():
            self.tell(SCHEDULER, NodeLost(node, why))
        member.membership.joined.cancel()
        member.membership.lost.set_result(why)

    def nodes(self) -> tuple[NodeState, ...]:
        """All members now, by slot."""
        states = (_state(node, member) for node, member in self._members.items())
        return tuple(sorted(states, key=lambda state: state.slot))

    def admit_gateway(self, gateway: GatewayId, address: str) -> None:
        """A gateway of another process: nodes are told of it before it can send a request. Raises ValueError for an id
        that is taken."""
        if gateway in self._gateways or gateway in self._machines:
            raise ValueError(f"there is a {gateway} already")
        self._gateways[gateway] = address
        self._post.admit(gateway, address)
        self._tell_peers()
        LOG.info("%s joins, from %s", gateway, address)

    def remove_gateway(self, gateway: GatewayId, why: str) -> None:
        """A gateway is gone for good: the scheduler and the nodes are told at once. Twice is fine."""
        if self._gateways.pop(gateway, None) is None:
            return
        LOG.info("%s is gone: %s", gateway, why)
        self._post.forget(gateway)
        self._tell_peers()
        self.tell(SCHEDULER, GatewayLost(gateway, why))

    def notify_gateways(self, notice: Notice) -> None:
        """Posts a message to the shell of every gateway of another process."""
        for gateway in self._gateways:
            self._post.notify(gateway, notice)

    @property
    def gateways(self) -> tuple[GatewayId, ...]:
        """Those of other processes."""
        return tuple(self._gateways)

    def _tell_peers(self) -> None:
        peers = {node: member.running.started.as_peer() for node, member in self._members.items()}
        gateways = [Peer(id=gateway, address=address) for gateway, address in self._gateways.items()]
        for node in peers:
            others = [peer for other, peer in peers.items() if other != node]
            self._post.notify(node, PeersChanged(peers=others, gateways=gateways))
        self.notify_gateways(PeersChanged(peers=peers.values()))

    # ── the post ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_letters(self, peer: str, letters: list[tuple[Address, Event]]) -> None:
        """To our machines, if they take such events; a node's report of itself is kept as well."""
        for to, event in letters:
            machine = self._machines.get(to)
            if machine is None or type(event) not in machine.accepts or not self._may_say(peer, event):
                self.num_foreign += 1
                LOG.warning("%s sent %s for %s: dropped", peer, type(event).__name__, to)
                continue
            if isinstance(event, StatsReported) and event.node == peer:
                self._members[event.node].stats = event.stats
            self.tell(to, event)

    def _may_say(self, peer: str, event: Event) -> bool:
        """A gateway speaks of its own requests, and of nothing else."""
        if peer not in self._gateways:
            return True
        return isinstance(event, OF_A_GATEWAY) and (not isinstance(event, RequestArrived) or event.gateway == peer)

    def on_notice(self, peer: str, notice: Notice) -> None:
        """A node's transfer counts."""
        if isinstance(notice, NodeReport) and peer in self._members:
            self._members[NodeId(peer)].report = notice

    def on_linked(self, peer: str) -> None:
        """A node can be reached: from now on the scheduler may use it."""
        if peer in self._gateways:
            return
        member = self._members[NodeId(peer)]
        if not member.membership.joined.done():
            member.membership.joined.set_result(None)
            self.tell(SCHEDULER, NodeJoined(NodeId(peer), member.running.started.spec))

    def on_severed(self, peer: str, why: str) -> None:
        """Who cannot be reached is lost, whatever it is doing."""
        self.remove(NodeId(peer), f"its link is severed: {why}")
        self.remove_gateway(GatewayId(peer), f"its link is severed: {why}")


def _state(node: NodeId, member: _Member) -> NodeState:
    started, report = member.running.started, member.report
    return NodeState(
        node=node,
        slot=member.slot,
        pid=started.pid,
        actor_id=member.running.actor_id,
        mix=member.mix,
        num_blocks=started.spec.num_blocks,
        stats=member.stats,
        num_fetches=report.num_fetches,
        num_failed_fetches=report.num_failed_fetches,
        num_bytes=report.num_bytes,
        transfers=transfers_of(report),
        address=started.address,
    )
