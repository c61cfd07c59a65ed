"""Clients that leave at random moments, in every state that a request, a handoff or a moving row can be in.

The timers are the usual ones, time is virtual. Nothing is lost and nobody dies; fetches and rows may fail, which leads
into some of the states. What a cancelled request holds may wait for a step that runs (two, where two may be planned),
for a fetch that is under way, and for the message that releases a lease; for no timer.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from cluster.simulated.checks import check_end
from cluster.simulated.costs import Costs, LinkCosts, StepCosts
from cluster.simulated.host import Dice, Host
from cluster.simulated.scenario import Arrival, Fault, NodePlan, Scenario, make_request
from cluster.simulated.world import World
from core.events import AttemptFinished, Event, MigrateAsked, Overridden, Stayed, Tick
from core.ids import SCHEDULER, Address, AttemptId, GatewayId, NodeId, RequestId, request_of
from core.lifecycle import DecodeState, PrefillState, RequestState
from core.timers import Timers

GATEWAY = GatewayId("gateway-0")
NUM_REQUESTS = 60
SPAN_S = 0.5
CALM_S = 60.0

OF_A_MOVE = (
    "prefill offered",
    "prefill claimed",
    "decode leaving",
    "decode waiting",
    "decode claiming",
    "decode fetching",
)
CELLS = (
    *(f"request {state}" for state in RequestState if state is not RequestState.ENDED),
    *(f"prefill {state}" for state in PrefillState if state is not PrefillState.GONE),
    *(f"decode {state}" for state in DecodeState if state not in (DecodeState.GONE, DecodeState.LEAVING)),
    *(f"{cell}, moving" for cell in OF_A_MOVE),
)
"""Where a client may leave. Only rows that move leave; what is lent of one ends at once, or as for any handoff."""


@dataclass(slots=True)
class Cancels:
    """What became of the cancelled requests of many runs: where they stood, and how long their blocks were held."""

    hits: Counter[str] = field(default_factory=Counter)
    held_s: list[float] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Requests that were cancelled before their answer was complete."""
        return len(self.held_s)

    def share(self, part: float) -> float:
        """The time within which this part of them had given back all blocks."""
        return sorted(self.held_s)[min(self.number - 1, int(part * self.number))]

    def lines(self) -> list[str]:
        """For people."""
        times = ", ".join(f"{name} {1e3 * self.share(part):.1f}" for name, part in (("p50", 0.5), ("p99", 0.99)))
        first = f"{self.number} cancels; blocks back after {times}, at most {1e3 * max(self.held_s):.1f} ms"
        return [first, *(f"{self.hits[cell]:>7}  {cell}" for cell in CELLS)]


class Leavers:
    """The clients of one run.

    Owns: who was cancelled when, and which nodes still hold something of it.
    """

    def __init__(self, world: World, seed: int, sums: Cancels) -> None:
        self._world = world
        self._chance = Random(f"clients who leave in {seed}")
        self._liked = CELLS[seed % len(CELLS)]
        self._sums = sums
        self._moving: set[AttemptId] = set()
        self._left_at: dict[RequestId, float] = {}
        self._held: dict[NodeId, frozenset[RequestId]] = {}
        self._back_at: dict[RequestId, float] = {}

    def after_event(self, address: Address, event: Event) -> None:
        """Note what moves and what is back; perhaps a client leaves now, or shortly."""
        self._note_moves(event)
        host = self._world.place.hosts.get(NodeId(address))
        if host is not None:
            self._note_back(host)
        if isinstance(event, Tick):
            return
        liked = self._in_liked(address, host)
        if liked and self._chance.random() < 0.3:
            self._cancel(self._chance.choice(liked))
        elif self._chance.random() < 0.01 and (request := self._world.any_open(self._chance)):
            self._world.loop.after(0.01 * self._chance.random(), self._cancel, request)

    def sum_up(self) -> None:
        """Everybody's blocks are back, or the run would not be over."""
        assert not any(self._held.values()), self._held
        for request, left_at in self._left_at.items():
            self._sums.held_s.append(max(0.0, self._back_at.get(request, left_at) - left_at))

    def _cancel(self, request: RequestId) -> None:
        answer = self._world.doors[GATEWAY].answers[request]
        if request in self._left_at or answer.ended is not None:
            return
        self._left_at[request] = self._world.loop.now
        self._sums.hits.update(self._cells_of(request))
        self._world.cancel(request)
        for host in self._world.alive():
            self._note_back(host)

    def _note_back(self, host: Host) -> None:
        """The last moment counts at which any node still held something."""
        if not self._left_at:
            return
        held = frozenset(request_of(attempt) for attempt in _attempts(host)) & self._left_at.keys()
        for request in self._held.get(host.node, frozenset()) - held:
            self._back_at[request] = self._world.loop.now
        self._held[host.node] = held

    def _note_moves(self, event: Event) -> None:
        if isinstance(event, MigrateAsked):
            self._moving.add(event.attempt)
        elif isinstance(event, Stayed | AttemptFinished):
            self._moving.discard(event.attempt)

    # ── where they stand ─────────────────────────────────────────────────────────────────────────────────────────────

    def _in_liked(self, address: Address, host: Host | None) -> list[RequestId]:
        if host is not None:
            return [request_of(attempt) for attempt in _attempts(host) if self._cell(host, attempt) == self._liked]
        if address != SCHEDULER or not self._liked.startswith("request"):
            return []
        scheduler = self._world.scheduler
        return [name for name in scheduler.live_requests if f"request {scheduler.state_of(name)}" == self._liked]

    def _cells_of(self, request: RequestId) -> list[str]:
        cells = [f"request {self._world.scheduler.state_of(request)}"]
        for host in self._world.alive():
            cells += [self._cell(host, attempt) for attempt in _attempts(host) if request_of(attempt) == request]
        return cells

    def _cell(self, host: Host, attempt: AttemptId) -> str:
        prefill, decode = host.machine.prefill.state_of(attempt), host.machine.decode.state_of(attempt)
        cell = f"decode {decode}" if prefill is PrefillState.GONE else f"prefill {prefill}"
        return f"{cell}, moving" if attempt in self._moving and cell in OF_A_MOVE else cell


def run_seed(seed: int, sums: Cancels) -> None:
    """One run; AssertionError where a block is not back, a token wrong, or an end missing."""
    world = World(draw(seed))
    world.place.dice = Dice(step_fails=0.01, row_fails=0.01, byte_flips=0.03)
    leavers = Leavers(world, seed, sums)
    world.watch.after = leavers.after_event
    for turn in range(4):
        world.loop.at(0.1 + turn * SPAN_S / 4, _drain, world, turn)
    world.run_until_quiet(CALM_S)
    check_end(world)
    leavers.sum_up()


def draw(seed: int) -> Scenario:
    """Pools too small for all, prompts of several chunks, host memory near, usual timers."""
    chance = Random(seed)
    names, num_steps = (("p", "prefill"), ("q", "mixed"), ("d", "decode"), ("e", "decode")), chance.randint(1, 2)
    nodes = tuple(
        NodePlan(name, role, chance.randint(10, 18), chance.choice((4, 8)), 8, num_steps, 0, 64, 0.0002)
        for name, role in names
    )
    arrivals = tuple(_arrival(chance, number) for number in range(NUM_REQUESTS))
    costs = Costs(StepCosts(fixed_s=chance.choice((0.006, 0.02))), LinkCosts(0.0005, 0.002, 0.002), jitter=1.0)
    return Scenario(
        seed,
        nodes,
        arrivals,
        timers=Timers(),
        costs=costs,
        faults=frozenset({Fault.CANCEL, Fault.CORRUPT}),
        fenced_transport=chance.random() < 0.5,
        overcommit=True,
        by_hand=True,
        rebalance_gap=chance.choice((None, 0.05)),
    )


def _arrival(chance: Random, number: int) -> Arrival:
    token_ids = [chance.randrange(1, 60) for _ in range(chance.randint(3, 18))]
    request = make_request(f"r{number}", token_ids, chance.randint(2, 14), seed=number, ignore_eos=True)
    return Arrival(SPAN_S * chance.random(), GATEWAY, request)


def _drain(world: World, turn: int) -> None:
    """One of the two that decode is to be empty; the other is open again."""
    empty, other = [host for host in world.alive() if host.plan.role == "decode"][:: 1 if turn % 2 else -1]
    world.tell(SCHEDULER, Overridden((other.node,), (other.machine.config.mix,)))
    world.drain(empty.node)


def _attempts(host: Host) -> tuple[AttemptId, ...]:
    return host.machine.prefill.attempts + host.machine.decode.attempts
