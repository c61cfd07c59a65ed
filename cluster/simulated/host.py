"""One simulated node's shell: carries out the six commands of the real `Node` machine over fake memory."""

from dataclasses import dataclass, field

from cluster.node import Node, NodeConfig
from cluster.simulated.costs import Costs
from cluster.simulated.fetches import Fetch
from cluster.simulated.links import Links
from cluster.simulated.lives import AttemptLives
from cluster.simulated.loop import Loop
from cluster.simulated.scenario import Fault, NodePlan
from cluster.simulated.steps import Steps
from cluster.simulated.watch import CHECK_EVERY, Deed, Watch
from core.commands import Command, Emit, FetchKV, Lend, Revoke, RunStep, Tell
from core.errors import Corrupt, LeaseExpired
from core.events import (
    AttemptEnd,
    AttemptFinished,
    Fenced,
    KVArrived,
    KVFailed,
    Lent,
    NodeEvent,
    PeerLost,
    Stayed,
    Tick,
)
from core.ids import AttemptId, NodeId
from engine.fake_memory import FakeMemory


@dataclass(slots=True)
class Dice:
    """How often things go wrong inside one node; the shares are probabilities per step, row, block and fetch."""

    step_fails: float = 0.0
    row_fails: float = 0.0
    byte_flips: float = 0.0
    fetch_slow: float = 0.0
    slow_s: float = 0.0


@dataclass(slots=True)
class Place:
    """What the hosts of one run share: time, links, prices, what goes wrong, and each other."""

    loop: Loop
    links: Links
    costs: Costs
    dice: Dice
    watch: Watch
    fenced_transport: bool = False
    hosts: dict[NodeId, "Host"] = field(default_factory=dict)

    def soon_s(self) -> float:
        """The time until something that takes none, inside a process."""
        return self.costs.link.message_s * self.loop.chance.random()

    def long_s(self, least_s: float) -> float:
        """A duration, as this run stretches it."""
        return least_s * (1.0 + self.costs.jitter * self.loop.chance.random())


class Host:
    """A process with one node in it.

    Owns: the machine, its memory, the fetches that run, and the leases its transport serves; its steps have a file of
    their own. Invariant: a fetch ends by exactly one event, after which it writes nothing.
    """

    def __init__(self, node: NodeId, plan: NodePlan, config: NodeConfig, place: Place) -> None:
        self.node = node
        self.plan = plan
        self.machine = Node(node, config)
        self.lives = AttemptLives(self.machine, place.watch)
        self.is_dead = False
        self.is_doomed = False
        self.paused_until = 0.0
        self.memory = FakeMemory(config.num_blocks, config.kv.block_size)
        self.served: set[tuple[AttemptId, NodeId]] = set()
        self.revoked: set[tuple[AttemptId, NodeId]] = set()
        self._place = place
        self._loop = place.loop
        self._steps = Steps(self, place)
        self._num_taken = 0
        self._fetches: dict[tuple[AttemptId, int], Fetch] = {}
        self._clock_ahead_s = place.loop.chance.uniform(-1000.0, 1000.0)
        self._clock_rate = place.loop.chance.uniform(0.99, 1.01)

    @property
    def is_quiet(self) -> bool:
        """Whether the machine is idle and nothing runs for it."""
        return self._steps.is_idle and not self._fetches and self.machine.is_idle()

    def start_ticking(self, tick_s: float) -> None:
        """Tick from now on, at a phase of our own."""
        self._loop.after(tick_s * self._loop.chance.random(), self._tick, tick_s)

    def take(self, event: NodeEvent) -> None:
        """Hand an event to the machine and carry out what it asks for; a paused process does so when it wakes."""
        if self.is_dead:
            return
        if self._loop.now < self.paused_until:
            self._loop.at(self.paused_until, self.take, event)
            return
        if isinstance(event, PeerLost):
            self._unbind(event.node)
        self.lives.before(event)
        now, num_migrated = self._clock(), self.machine.prefill.num_migrated
        for command in self.machine.handle(event, now):
            self._do(command)
        if isinstance(event, Tick):
            assert not self.machine.prefill.leases.expired(now), f"{self.node}: a lease outlives its time and a tick"
        self.lives.after(event)
        self._place.watch.happened(Deed.MIGRATED, self.machine.prefill.num_migrated - num_migrated)
        self._num_taken += 1
        if self._num_taken % CHECK_EVERY == 0:
            self.machine.check()
        self._place.watch.taken(self._loop.now, self.node, event)

    def end(self) -> None:
        """The process is gone, with all that ran in it."""
        self.lives.note(Fault.KILL)
        self.is_dead = True
        self._steps.clear()
        self._fetches.clear()

    def _clock(self) -> float:
        return self._clock_ahead_s + self._loop.now * self._clock_rate

    def _tick(self, tick_s: float) -> None:
        if self.is_dead:
            return
        if self._loop.now >= self.paused_until:
            self.take(Tick())
        self._loop.after(tick_s, self._tick, tick_s)

    def _do(self, command: Command) -> None:
        match command:
            case Tell(to, event):
                if isinstance(event, AttemptFinished):
                    self._note_end(event)
                elif isinstance(event, Stayed) and event.was_offered:
                    self._place.watch.happened(Deed.STAYED)
                self._place.links.send(self.node, to, event)
            case Emit(gateway, tokens):
                self._place.links.send(self.node, gateway, tokens)
            case RunStep(plan):
                self._steps.ask(plan)
            case FetchKV():
                self._begin_fetch(command)
            case Lend(attempt, reader):
                self._loop.after(self._place.soon_s(), self._serve, attempt, reader)
            case Revoke(attempt, reader):
                self._loop.after(self._place.soon_s(), self._revoke, attempt, reader)

    def _note_end(self, event: AttemptFinished) -> None:
        self.lives.reported.add(event.attempt)
        if event.end is AttemptEnd.PREEMPTED:
            self._place.watch.happened(Deed.PREEMPTED)

    # ── fetches: one call a block, half of it now, the other half and the proof with the next ────────────────────────

    def _begin_fetch(self, command: FetchKV) -> None:
        owner = self._place.hosts[command.handle.owner]
        key = (command.attempt, command.fetch)
        assert key not in self._fetches, f"{self.node}: fetch {key} was asked for twice"
        served = (command.handle.attempt, self.node)
        assert owner.is_dead or served in owner.served, f"{self.node}: {served} is read before it was lent"
        self._fetches[key] = fetch = Fetch(command, owner.memory, self.memory)
        self._loop.after(self._place.long_s(self._place.costs.link.fetch_s), self._go_on, fetch)

    def _go_on(self, fetch: Fetch) -> None:
        """Close the block that is open, open the next one, or end."""
        if self.is_dead:
            return
        if self._loop.now < self.paused_until:
            self._loop.at(self.paused_until, self._go_on, fetch)
            return
        if why := self._why_impossible(fetch):
            self._end_fetch(fetch, AttemptEnd.KV_LOST, why)
            return
        try:
            if fetch.go_on(flip=self._flips(fetch)):
                self._end_fetch(fetch, None, "")
            else:
                self._loop.after(self._block_s(), self._go_on, fetch)
        except Corrupt as error:
            self._end_fetch(fetch, AttemptEnd.KV_CORRUPT, str(error))
        except LeaseExpired as error:
            self._place.watch.happened("stale_read")
            self._end_fetch(fetch, AttemptEnd.KV_LOST, str(error))

    def _flips(self, fetch: Fetch) -> bool:
        flips = fetch.num_opened > 0 and self._loop.chance.random() < self._place.dice.byte_flips
        if flips:
            self._place.watch.happened(Fault.CORRUPT)
        return flips

    def _block_s(self) -> float:
        dice = self._place.dice
        block_s = self._place.long_s(self._place.costs.link.block_s)
        if dice.fetch_slow and self._loop.chance.random() < dice.fetch_slow:
            self._place.watch.happened(Fault.SLOW_FETCH)
            block_s += dice.slow_s * self._loop.chance.random() ** 2
        return block_s

    def _why_impossible(self, fetch: Fetch) -> str:
        handle = fetch.command.handle
        owner = self._place.hosts[handle.owner]
        if owner.is_dead:
            return f"{handle.owner} is gone"
        if (handle.attempt, self.node) in owner.revoked and self._place.fenced_transport:
            return f"{handle.owner} has closed the lease"
        return fetch.why_ended

    def _end_fetch(self, fetch: Fetch, end: AttemptEnd | None, why: str) -> None:
        command = fetch.command
        del self._fetches[command.attempt, command.fetch]
        event: NodeEvent = KVArrived(command.attempt, command.fetch)
        if end is not None:
            event = KVFailed(command.attempt, command.fetch, end, why)
        self._loop.after(self._place.soon_s(), self.take, event)

    def _unbind(self, peer: NodeId) -> None:
        for fetch in self._fetches.values():
            if fetch.command.handle.owner == peer:
                fetch.why_ended = f"the link to {peer} is severed"

    # ── leases, as the transport serves them ─────────────────────────────────────────────────────────────────────────

    def _serve(self, attempt: AttemptId, reader: NodeId) -> None:
        self.served.add((attempt, reader))
        self.take(Lent(attempt, reader))

    def _revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """From here a fenced transport reads no more; where that cannot be had, generations and digests must do."""
        self.revoked.add((attempt, reader))
        self.take(Fenced(attempt, reader))
