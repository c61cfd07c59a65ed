"""Runs one node: a thread owns its machine and hands the commands out; other threads do what they ask."""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Protocol, cast, get_args

from cluster.api.v1.post_pb2 import NodeReport, PeersChanged
from cluster.live.hands import Fetches, Runner, Steps
from cluster.live.last_events import LastEvents
from cluster.live.mail import Notice
from cluster.live.neighbours import Neighbours
from cluster.live.orders import NodeOrder, StartedNode, own_address_towards
from cluster.live.post import Post
from cluster.live.post_thread import Batch, PostThread
from cluster.live.transfers import node_report
from core.commands import Command, Emit, FetchKV, Lend, Revoke, RunStep, Tell
from core.events import Event, Fenced, Lent, NodeEvent, PeerLost, Tick
from core.ids import SCHEDULER, Address, NodeId
from core.mix import NodeSpec
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.links import Links
from kv_transfer.slab import Slab

LOG = logging.getLogger("penstock.node")
NODE_EVENTS = frozenset(get_args(NodeEvent))
REPORT_EVERY_S = 0.5


class Machine(Protocol):
    """The node's machine, as its shell sees it."""

    def handle(self, event: NodeEvent, now: float) -> Sequence[Command]:
        """Takes one event in; the commands are to be carried out in order."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """Everything that one node consists of, made and connected, but not running."""

    node: NodeId
    spec: NodeSpec
    machine: Machine
    executor: Runner
    links: Links
    slab: Slab | DeviceSlab


class Host:
    """The shell of one node.

    Owns: the node's threads (`machine`, `steps`, `fetch-*`, `post`), its inbox, which gateways are processes of their
    own (all that ever were, and those that are), and in the end the parts.
    Invariant: only the thread `machine` touches the machine; each command is answered through the inbox.
    """

    def __init__(self, parts: NodeParts, order: NodeOrder) -> None:
        self._parts = parts
        self._order = order
        self._inbox: Queue[NodeEvent | None] = Queue()  # a `SimpleQueue` may miss its timeout: see `Steps`
        self._own: deque[NodeEvent] = deque()
        self._outgoing: dict[str, list[tuple[Address, Event]]] = {}
        self._last = LastEvents()
        self._reported = (0.0, NodeReport())
        self._gateways: frozenset[str] = frozenset()
        self._gateways_here: frozenset[str] = frozenset()
        self._over = threading.Event()
        self._why = ""
        self.num_foreign = 0
        post = Post(parts.node, order.token, self, order.timers, order.head.term)
        self._post = PostThread(post, own_address_towards(order.head.address))
        self._neighbours = Neighbours(parts.links)
        self._steps = Steps(parts.executor, self._inbox.put)
        self._fetches = Fetches(parts.links, self._neighbours, self._inbox.put)
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)

    def start(self) -> StartedNode:
        """Begins to listen and to run; what it returns is to be told to the head."""
        sys.setswitchinterval(self._order.settings.switch_interval_s)
        address = self._post.start([(self._order.head.id, self._order.head.address)])
        self._thread.start()
        parts = self._parts
        return StartedNode(parts.node, parts.spec, os.getpid(), address, parts.links.offer())

    def wait(self) -> str:
        """Blocks until the node is over; returns why, or an empty text where it was stopped."""
        self._over.wait()
        return self._why

    def stop(self) -> None:
        """Ends all threads and gives every part back."""
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self._post.stop()
        self._parts.links.close()
        self._fetches.stop()
        self._steps.stop()
        self._parts.executor.close()
        self._parts.slab.close()
        self._over.set()

    # ── the machine's thread ─────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            self._turns()
        except Exception as error:
            LOG.critical("an invariant of %s is broken; its last events:", self._parts.node)
            for line in self._last.report():
                LOG.critical("%s", line)
            LOG.critical("the broken invariant:", exc_info=True)
            self._end(f"an invariant is broken: {type(error).__name__}: {error}")

    def _turns(self) -> None:
        """One turn: whatever has arrived, then `Tick` if it is due, then one message to each peer that is told any."""
        tick_at = time.monotonic()
        while (arrived := self._take(tick_at)) is not None:
            now = time.monotonic()
            self._own.extend(arrived)
            if now >= tick_at:
                self._own.append(Tick())
                self._watch_steps()
                tick_at = now + self._order.timers.tick_s
            self._turn(now)

    def _take(self, until: float) -> list[NodeEvent] | None:
        """Blocks for the first event, then drains what is there; None when the node is stopped."""
        events: list[NodeEvent] = []
        try:
            event = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            while event is not None:
                events.append(event)
                event = self._inbox.get_nowait()
            return None
        except Empty:
            return events

    def _turn(self, now: float) -> None:
        while self._own:
            event = self._own.popleft()
            self._last.note(event, now)
            for command in self._parts.machine.handle(event, now):
                self._execute(command)
        if self._outgoing:
            outgoing, self._outgoing = self._outgoing, {}
            self._post.send(cast(Batch, list(outgoing.items())))
        self._report_transfers(now)

    def _execute(self, command: Command) -> None:
        match command:
            case RunStep(plan):
                self._steps.run(plan)
            case FetchKV():
                self._fetches.fetch(command)
            case Tell(to, event):
                self._tell(to, event)
            case Emit(gateway, tokens):
                self._letters(self._home_of(gateway)).append((gateway, tokens))
            case Lend(attempt, reader):
                self._parts.links.lend(attempt, reader)
                self._own.append(Lent(attempt, reader))
            case Revoke(attempt, reader):
                self._parts.links.revoke(attempt, reader)
                self._own.append(Fenced(attempt, reader))

    def _tell(self, to: Address, event: Event) -> None:
        if to == self._parts.node:
            self._own.append(cast(NodeEvent, event))
        else:
            self._letters(self._order.head.id if to == SCHEDULER else to).append((to, event))

    def _home_of(self, gateway: str) -> str:
        """A gateway beside the head is reached there; any other at its own post, even when that is gone."""
        return gateway if gateway in self._gateways else self._order.head.id

    def _letters(self, peer: str) -> list[tuple[Address, Event]]:
        return self._outgoing.setdefault(peer, [])

    def _report_transfers(self, now: float) -> None:
        at, before = self._reported
        if now - at < REPORT_EVERY_S:
            return
        report = node_report(self._fetches.counts(), self._parts.links.report())
        self._reported = (now, report)
        if report != before:
            self._post.notify(self._order.head.id, report)

    def _watch_steps(self) -> None:
        """A step that does not end leaves the link alive and the node dead: nobody else can see it."""
        if not self._steps.is_alive:
            self._end("an invariant is broken: the thread that runs steps has ended")
        running_s, limit_s = self._steps.running_s(), self._order.timers.step_s
        if running_s > limit_s:
            self._end(f"a step has run for {running_s:.0f} s; the limit is {limit_s:g} s")

    def _end(self, why: str) -> None:
        self._why = self._why or why
        self._over.set()

    # ── the post's thread ────────────────────────────────────────────────────────────────────────────────────────────

    def on_letters(self, peer: str, letters: list[tuple[Address, Event]]) -> None:
        """Into the inbox, if they are for this node and of a kind that it takes."""
        for to, event in letters:
            if to == self._parts.node and type(event) in NODE_EVENTS and peer not in self._gateways:
                self._inbox.put(cast(NodeEvent, event))
            else:
                self.num_foreign += 1
                LOG.warning("%s sent %s for %s: dropped", peer, type(event).__name__, to)

    def on_notice(self, peer: str, notice: Notice) -> None:
        """The head says who else is there."""
        if peer != self._order.head.id or not isinstance(notice, PeersChanged):
            return
        self._change_gateways({peer.id: peer.address for peer in notice.gateways})
        joined, gone = self._neighbours.change(notice.peers)
        for other in joined:
            self._post.admit(other.id, other.address)
            self._fetches.prepare(NodeId(other.id))
        for node in gone:
            self._post.forget(node)
            self._inbox.put(PeerLost(node))

    def _change_gateways(self, addresses: dict[str, str]) -> None:
        """Takes the gateways of other processes that there are now. What is told them waits for their links."""
        for gone in self._gateways_here - addresses.keys():
            self._post.forget(gone)
        for new in addresses.keys() - self._gateways_here:
            self._post.admit(new, addresses[new])
        self._gateways_here = frozenset(addresses)
        self._gateways |= self._gateways_here

    def on_linked(self, peer: str) -> None:
        """Nothing: a neighbour's pool is bound when it is needed."""

    def on_severed(self, peer: str, why: str) -> None:
        """Without its head a node is over; without a neighbour or a gateway it goes on."""
        if peer == self._order.head.id:
            self._end(f"the link to the head is severed: {why}")
        elif peer not in self._gateways:
            self._neighbours.unbind(NodeId(peer))
            self._inbox.put(PeerLost(NodeId(peer)))
