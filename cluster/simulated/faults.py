"""What goes wrong, and when: after any event, by the dice of the run, at whatever that event was about."""

from typing import TYPE_CHECKING

from cluster.simulated.host import Dice, Host
from cluster.simulated.links import Delays
from cluster.simulated.scenario import Fault, Scenario
from core.events import (
    AttemptLost,
    ClaimAnswered,
    Claimed,
    Event,
    Fenced,
    KVArrived,
    KVFailed,
    LeaseReleased,
    LeasesRenewed,
    Lent,
    MigrateAsked,
    Offered,
    Overridden,
    RequestResumed,
    Sealed,
    Stayed,
    StepDone,
    Tick,
    TokensEmitted,
)
from core.ids import SCHEDULER, Address, AttemptId, NodeId, RequestId, request_of
from core.lifecycle import DecodeState
from core.mix import Mix, mix_of

if TYPE_CHECKING:
    from cluster.simulated.world import World

PER_EVENT = {
    Fault.CANCEL: 0.012,
    Fault.KILL: 0.0010,
    Fault.ZOMBIE: 0.0010,
    Fault.SEVER: 0.0030,
    Fault.PAUSE: 0.0020,
    Fault.MIX: 0.0030,
    Fault.DRAIN: 0.0120,
}
"""Probability that a fault follows an event that is no tick, at rate 1."""

MAX_DEATHS = 6

HANDOFF = (
    Offered | Sealed | Claimed | Lent | ClaimAnswered | KVArrived | KVFailed | LeaseReleased | LeasesRenewed | Fenced
)
MIGRATION = MigrateAsked | Stayed
RETRY = AttemptLost | RequestResumed
HANDOFF_WEIGHT = 6.0
WAITING_WEIGHT = 150.0
SAVED_WEIGHT = 8.0
MIGRATION_WEIGHT = 40.0
"""Handoffs and retries are short: faults follow their events this much more often, more so where blocks lack, where a
row is about to leave, and after steps at nodes that have rows in host memory."""


def delays_of(scenario: Scenario) -> Delays:
    """How messages travel in this run. No live link delays one for longer than it takes to be called severed."""
    link, late = scenario.costs.link, Fault.DELAY in scenario.faults
    return Delays(
        link.message_s,
        scenario.costs.jitter,
        late_share=0.05 * scenario.fault_rate if late else 0.0,
        late_s=scenario.timers.dead_s * 0.9,
        reorder=Fault.REORDER in scenario.faults,
    )


def dice_of(scenario: Scenario) -> Dice:
    """What goes wrong inside the nodes of this run."""
    faults, rate = scenario.faults, scenario.fault_rate
    return Dice(
        step_fails=0.01 * rate if Fault.STEP_FAILED in faults else 0.0,
        row_fails=0.003 * rate if Fault.ROW_FAILED in faults else 0.0,
        byte_flips=0.02 * rate if Fault.CORRUPT in faults else 0.0,
        fetch_slow=0.1 * rate if Fault.SLOW_FETCH in faults else 0.0,
        slow_s=scenario.timers.handoff_s * 1.3,
    )


class Faults:
    """Throws the dice after each event.

    Owns: nothing but the number of deaths so far; what it breaks belongs to the world.
    """

    def __init__(self, scenario: Scenario, world: "World") -> None:
        self._timers = scenario.timers
        self._world = world
        self._chance = world.loop.chance
        self._num_deaths = 0
        self._shares: list[tuple[float, Fault]] = []
        total = 0.0
        for fault, share in PER_EVENT.items():
            if fault in scenario.faults:
                total += share * scenario.fault_rate
                self._shares.append((total, fault))

    def after_event(self, address: Address, event: Event) -> None:
        """Perhaps something breaks now."""
        if not self._shares or isinstance(event, Tick):
            return
        thrown = self._chance.random()
        if isinstance(event, MIGRATION):
            thrown /= MIGRATION_WEIGHT
        elif isinstance(event, HANDOFF | RETRY):
            thrown /= WAITING_WEIGHT if self._is_waiting(address, event) else HANDOFF_WEIGHT
        elif isinstance(event, StepDone) and self._has_saved(address):
            thrown /= SAVED_WEIGHT
        if thrown < self._shares[-1][0]:
            fault = next(fault for share, fault in self._shares if thrown < share)
            self._inject(fault, address, event)

    def _is_waiting(self, address: Address, event: Event) -> bool:
        """Whether this has just been offered, and there are no blocks for it yet."""
        if not isinstance(event, Offered | Sealed):
            return False
        host = self._world.place.hosts.get(NodeId(address))
        return host is not None and host.machine.decode.state_of(event.attempt) is DecodeState.WAITING

    def _has_saved(self, address: Address) -> bool:
        """Whether rows of this node are in host memory, or on their way there."""
        host = self._world.place.hosts.get(NodeId(address))
        return host is not None and host.machine.decode.num_saved_blocks > 0

    def _inject(self, fault: Fault, address: Address, event: Event) -> None:
        match fault:
            case Fault.CANCEL:
                if request := self._request_of(event):
                    self._world.cancel(request)
            case Fault.KILL | Fault.ZOMBIE:
                self._end_node(fault, self._host_near(address))
            case Fault.SEVER:
                self._sever(self._host_near(address), event)
            case Fault.PAUSE:
                self._pause(self._host_near(address))
            case Fault.MIX:
                self._override()
            case Fault.DRAIN:
                self._drain(self._host_near(address))

    def _request_of(self, event: Event) -> RequestId | None:
        """A request that the event is about; one of them where there are several."""
        attempts: tuple[AttemptId, ...] = ()
        match event:
            case StepDone(result):
                attempts = result.attempts
            case TokensEmitted():
                attempts = event.attempts
            case _:
                if attempt := getattr(event, "attempt", None):
                    attempts = (attempt,)
        return request_of(self._chance.choice(attempts)) if attempts else self._world.any_open(self._chance)

    def _host_near(self, address: Address) -> Host | None:
        host = self._world.place.hosts.get(NodeId(address))
        if host is not None and not host.is_dead:
            return host
        alive = self._world.alive()
        return self._chance.choice(alive) if alive else None

    def _end_node(self, fault: Fault, host: Host | None) -> None:
        """A node dies, and later that is known; a zombie is taken for dead first, and works on for a while."""
        if host is None or host.is_doomed or self._num_deaths >= MAX_DEATHS:
            return
        self._num_deaths += 1
        self._world.watch.happened(fault)
        dies_in, known_in = 0.0, self._chance.choice((0.05, 1.0)) * self._timers.dead_s * self._chance.random()
        if fault is Fault.ZOMBIE:
            dies_in, known_in = self._chance.uniform(0.5, 2.0) * self._timers.dead_s, 0.0
        self._world.end_node(host, dies_in, known_in)

    def _sever(self, host: Host | None, event: Event) -> None:
        """The link to the peer that the event is about, or to any other node."""
        if host is None:
            return
        named = getattr(event, "reader", None) or getattr(event, "owner", None) or getattr(event, "decode_node", None)
        handle = getattr(event, "handle", None)
        named = handle.owner if handle is not None else named
        peers = [peer for peer in self._world.alive() if peer is not host]
        named_peers = [peer for peer in peers if peer.node == named]
        if peers:
            self._world.sever(host, self._chance.choice(named_peers or peers))

    def _pause(self, host: Host | None) -> None:
        if host is not None:
            self._world.watch.happened(Fault.PAUSE)
            pause_s = self._chance.choice((0.3, 1.0, 1.5)) * self._timers.lease_s * self._chance.random()
            host.paused_until = max(host.paused_until, self._world.loop.now + pause_s)

    def _override(self) -> None:
        """The operator sets one or two mixes, wise or not."""
        alive = self._world.alive()
        chosen = self._chance.sample(alive, min(len(alive), self._chance.randint(1, 2)))
        roles = [self._chance.choice(("prefill", "decode", "mixed", "mixed", "closed")) for _ in chosen]
        self._world.watch.happened(Fault.MIX)
        self._world.tell(SCHEDULER, Overridden(tuple(h.node for h in chosen), tuple(self._mix(role) for role in roles)))

    def _drain(self, host: Host | None) -> None:
        """A node is to be empty, and after a while takes what it was started for; not where no other takes anything."""
        nodes = self._world.scheduler.view.nodes.values()
        if host is None or not any(view.node != host.node and view.base_mix.role != "closed" for view in nodes):
            return
        self._world.drain(host.node)
        again_s = self._chance.uniform(0.05, 1.0) * self._timers.dead_s
        self._world.loop.after(
            again_s, self._world.tell, SCHEDULER, Overridden((host.node,), (host.machine.config.mix,))
        )

    def _mix(self, role: str) -> Mix:
        return mix_of(role, self._chance.choice((2, 8)), self._chance.choice((2, 8)))
