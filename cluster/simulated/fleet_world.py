"""One run of a fleet: time, the scheduler's shell, the door, the hosts, and what happens to them when."""

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from cluster.node import NodeConfig
from cluster.simulated.counting import END_TOKEN
from cluster.simulated.fleet_door import FleetDoor
from cluster.simulated.fleet_host import FleetHost, FleetPlace
from cluster.simulated.loop import Loop
from cluster.simulated.prompts import Prompts
from cluster.simulated.shared_links import SharedLinks
from cluster.workload.items import Workload
from core.decisions import CapacityTarget, OverrideLifted
from core.events import (
    DrainAsked,
    Drained,
    Event,
    MixChanged,
    NodeJoined,
    NodeLost,
    Overridden,
    PeerLost,
    SchedulerEvent,
    Tick,
)
from core.ids import OPERATOR, PLANNER, SCHEDULER, Address, NodeId, RequestId, node_name
from core.mix import Mix, NodeSpec, mix_of
from core.request import SLO
from core.whatif import WhatIfAsked
from scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from cluster.simulated.fleet import Fleet, FleetFault, FleetOverride, FleetPlanner, FleetSupply

MAX_TOKENS_FACTOR = 2
"""All clients ask for so many times the workload's longest answer: a scheduler cannot know a length from it."""

MAX_RUNS = 1 << 20
"""How often a step may be run before a machine hears of it: ticks come long before."""

SETTLES_S = 120.0
"""By then after the last end everything is idle: no lease, quarantine or tick takes longer."""


@dataclass(frozen=True, slots=True)
class MixChange:
    """The scheduler told a node to accept otherwise."""

    at_s: float
    node: str
    role: str
    prefill_tokens_per_step: int
    max_decode_rows: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the fleet, and what is promised where an item says nothing else."""

    workload: Workload
    slo: SLO
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What happens to the fleet, and who serves its scheduler."""

    faults: "tuple[FleetFault, ...]" = ()
    overrides: "tuple[FleetOverride, ...]" = ()
    planner: "FleetPlanner | None" = None
    supply: "FleetSupply | None" = None


class FleetWorld:
    """Everything of one run.

    Owns: the loop and every machine's shell. `hosts` keeps those that died, for their account; `starting_s` how long
    nodes were being started, by name; `sizes` how many lived from when on.
    """

    def __init__(
        self, fleet: "Fleet", scheduler: Scheduler, load: Load, circumstances: Circumstances, seed: int
    ) -> None:
        self.fleet = fleet
        self.loop = Loop(Random(seed))
        self.links = SharedLinks(self.loop, fleet.links)
        self.scheduler = scheduler
        self.timers = fleet.scheduler.timers
        self.output_tokens: dict[RequestId, int] = {}
        self.place = FleetPlace(self.loop, self.links, self.output_tokens, self.send)
        self.door = FleetDoor(self.timers, self.loop, self.send)
        self.hosts: dict[NodeId, FleetHost] = {}
        self.mix_changes: list[MixChange] = []
        self.for_operator: list[Event] = []
        self._circumstances = circumstances
        self.starting_s: dict[str, float] = {}
        self.sizes: list[tuple[float, int]] = []
        self._starting: dict[str, float] = {}
        self._stopping: set[str] = set()
        self._alive: dict[str, NodeId] = {}
        self._num_lives: dict[str, int] = {}
        self._plans = {node.name: node for node in fleet.nodes}
        self._slo = load.slo
        self._items = load.workload.items
        longest = max((item.output_tokens for item in self._items), default=1)
        size = fleet.kv.block_size
        self._prompts = Prompts(load.workload.block_tokens, size, MAX_TOKENS_FACTOR * longest, load.deadline_s)
        self._start()

    # ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Until every request has ended."""
        loop, door, num_items = self.loop, self.door, len(self._items)
        while door.num_ended < num_items:
            loop.step()

    def settle(self) -> None:
        """Let what ended come home. Raises AssertionError where something is kept for ever."""
        end = self.loop.now + SETTLES_S
        while kept := self._kept():
            assert self.loop.now < end, f"not idle {SETTLES_S:g} s after the last request: {kept}"
            self.loop.run(self.loop.now + self.timers.tick_s)

    def _kept(self) -> list[str]:
        kept = [] if self.scheduler.is_idle() else ["the scheduler"]
        return kept + [node for node in self._alive.values() if not self.hosts[node].machine.is_idle()]

    def _start(self) -> None:
        """Nodes join, except those that come later; everything else happens at its time."""
        first: dict[str, str] = {}
        for fault in sorted(self._circumstances.faults, key=lambda fault: fault.at_s):
            first.setdefault(fault.node, fault.kind)
            self.loop.at(fault.at_s, self._befall, fault)
        supply = self._circumstances.supply
        absent = supply.absent if supply else ()
        for node in self.fleet.nodes:
            if first.get(node.name) != "join" and node.name not in absent:
                self.join(node.name)
        self.mix_changes.clear()  # the first nodes do everything until the others are there
        for override in self._circumstances.overrides:
            self.loop.at(override.at_s, self._override, override)
        self.loop.after(self.timers.tick_s, self._tick)
        if self._items:
            self.loop.at(self._items[0].at_s, self._arrive, 0)

    # ── what happens to nodes ────────────────────────────────────────────────────────────────────────────────────────

    def join(self, name: str) -> None:
        """A new incarnation of a node; nothing where it lives."""
        if name in self._alive:
            return
        plan, number = self._plans[name], self._num_lives.get(name, 0)
        self._num_lives[name] = number + 1
        node = self._alive[name] = NodeId(f"{name}@{number}")
        fleet = self.fleet
        mix = mix_of(plan.role, plan.prefill_tokens_per_step, plan.max_decode_rows)
        layout = fleet.kv.id("simulated")
        config = NodeConfig(
            layout,
            fleet.kv,
            plan.num_blocks,
            fleet.max_model_len,
            frozenset({END_TOKEN}),
            mix,
            timers=self.timers,
            max_runs=MAX_RUNS if fleet.may_repeat else 1,
        )
        self.hosts[node] = FleetHost(node, config, self.place, plan.truth, plan.beside)
        spec = NodeSpec(layout, fleet.kv, plan.num_blocks, fleet.max_model_len, mix, plan.truth.belief())
        self.sizes.append((self.loop.now, len(self._alive)))
        self._schedule(NodeJoined(node, spec))

    def lose(self, name: str, heard_after_s: float) -> None:
        """Its process ends; the others hear of it."""
        node = self._alive.pop(name, None)
        if node is None:
            return
        self.hosts[node].end()
        self.sizes.append((self.loop.now, len(self._alive)))
        self.loop.after(heard_after_s, self._schedule, NodeLost(node, "its process ended"))
        for survivor in self._alive.values():
            self.loop.after(heard_after_s, self.hosts[survivor].take, PeerLost(node))

    def _befall(self, fault: "FleetFault") -> None:
        if fault.kind == "lost":
            self.lose(fault.node, fault.heard_after_s)
            if fault.back_after_s is not None:
                self.loop.after(max(fault.back_after_s, fault.heard_after_s), self.join, fault.node)
        elif fault.kind == "join":
            self.join(fault.node)
        elif fault.node in self._alive:
            self._schedule(DrainAsked(self._alive[fault.node]))

    def _override(self, override: "FleetOverride") -> None:
        if not override.mixes:
            self._schedule(OverrideLifted())
            return
        named = [(self._alive[name], mix) for name, mix in override.mixes if name in self._alive]
        self._schedule(Overridden(tuple(node for node, _ in named), tuple(mix for _, mix in named)))

    # ── the operator's side ──────────────────────────────────────────────────────────────────────────────────────────

    def _take_for_operator(self, event: Event) -> None:
        self.for_operator.append(event)
        if isinstance(event, CapacityTarget) and self._circumstances.supply:
            self._carry_out(event, self._circumstances.supply)
        elif isinstance(event, Drained) and node_name(event.node) in self._stopping:
            self._stopping.discard(node_name(event.node))
            self.lose(node_name(event.node), 0.0)

    def _carry_out(self, target: CapacityTarget, supply: "FleetSupply") -> None:
        """Start what is missing, in the order of the fleet; do not start what is too much; drain what should go."""
        for node in target.remove:
            if self._alive.get(node_name(node)) == node and node_name(node) not in self._stopping:
                self._stopping.add(node_name(node))
                self._schedule(DrainAsked(node))
        missing = target.num_nodes - len(self._alive.keys() - self._stopping) - len(self._starting)
        down = [name for name in self._plans if name not in self._alive and name not in self._starting]
        for name in down[: max(0, missing)]:
            self._starting[name] = self.loop.now
            self.loop.after(supply.start_s, self._end_start, name, self.loop.now)
        for name in list(self._starting)[::-1][: max(0, -missing)]:
            self._end_start(name, self._starting[name], is_wanted=False)

    def _end_start(self, name: str, asked_at: float, is_wanted: bool = True) -> None:
        """A node that was asked for is ready, or is not wanted any more; nothing where that was said before."""
        if self._starting.get(name) != asked_at:
            return
        del self._starting[name]
        self.starting_s[name] = self.starting_s.get(name, 0.0) + self.loop.now - asked_at
        if is_wanted:
            self.join(name)

    def _ask_planner(self, asked: WhatIfAsked) -> None:
        planner = self._circumstances.planner
        if planner is not None:
            self.loop.after(planner.delay_s, self._schedule, planner.answer(asked))

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, sender: Address, to: Address, event: object) -> None:
        """Put a message on its way; gateway and scheduler are one process."""
        is_near = to not in self.hosts and sender not in self.hosts
        self.loop.after(0.0 if is_near else self.fleet.links.message_s, self._deliver, to, event)

    def _deliver(self, to: Address, event: Event) -> None:
        host = self.hosts.get(NodeId(to))
        if host is not None:
            host.take(event)  # type: ignore[arg-type]
        elif to == SCHEDULER:
            self._schedule(event)  # type: ignore[arg-type]
        elif to == OPERATOR:
            self._take_for_operator(event)
        elif to == PLANNER:
            self._ask_planner(event)  # type: ignore[arg-type]
        else:
            self.door.take(event)  # type: ignore[arg-type]

    def _schedule(self, event: SchedulerEvent) -> None:
        for command in self.scheduler.handle(event, self.loop.now):
            if isinstance(command.event, MixChanged):  # type: ignore[union-attr]
                self._note_mix(command.to, command.event.mix)  # type: ignore[union-attr]
            self.send(SCHEDULER, command.to, command.event)  # type: ignore[union-attr]

    def _note_mix(self, node: Address, mix: Mix) -> None:
        change = MixChange(
            self.loop.now, node_name(NodeId(node)), mix.role, mix.prefill_tokens_per_step, mix.max_decode_rows
        )
        self.mix_changes.append(change)

    def _tick(self) -> None:
        self._schedule(Tick())
        self.loop.after(self.timers.tick_s, self._tick)

    # ── arrivals ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _arrive(self, number: int) -> None:
        item, name = self._items[number], RequestId(f"{number:08x}")
        if number + 1 < len(self._items):
            self.loop.at(self._items[number + 1].at_s, self._arrive, number + 1)
        slo = item.slo or self._slo
        if item.prompt_tokens + item.output_tokens > self.fleet.max_model_len:
            self.door.turn_away(item, name, slo)
            return
        self.output_tokens[name] = item.output_tokens
        self.door.arrive(item, self._prompts.request(name, item, slo, self.fleet.max_model_len), slo)
