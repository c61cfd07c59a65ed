"""A whole cluster in virtual time: gateways, scheduler, nodes, links between them, and what may go wrong."""

from random import Random

from cluster.node import NodeConfig
from cluster.simulated.door import Door
from cluster.simulated.faults import Faults, delays_of, dice_of
from cluster.simulated.host import Dice, Host, Place
from cluster.simulated.links import Delays, Links
from cluster.simulated.lives import RequestLives
from cluster.simulated.loop import Loop
from cluster.simulated.scenario import EOS_TOKEN_IDS, Arrival, Fault, NodePlan, Scenario
from cluster.simulated.watch import CHECK_EVERY, Watch
from core.commands import Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    DrainAsked,
    Drained,
    Event,
    NodeJoined,
    NodeLost,
    Overridden,
    PeerLost,
    SchedulerEvent,
    Tick,
)
from core.ids import OPERATOR, SCHEDULER, Address, AttemptId, GatewayId, NodeId, RequestId
from core.membership import GatewayLost
from core.mix import NodeSpec, mix_of
from scheduler.config import SchedulerConfig
from scheduler.policies.build import policy_of
from scheduler.scheduler import Scheduler

FAILURES = frozenset({AttemptEnd.KV_LOST, AttemptEnd.KV_CORRUPT, AttemptEnd.STEP_FAILED})

LOOKS_PER_TICK = 0.73
"""How often it is asked whether all is quiet: out of step with ticks, whose reports are under way at the same phase."""


class World:
    """One run of a scenario.

    Owns: the loop, the links, and every machine's shell. Nodes that died stay in `place.hosts`, for their memory.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.loop = Loop(Random(scenario.seed))
        self.watch = Watch()
        links = Links(self.loop, delays_of(scenario), self._deliver)
        self.place = Place(self.loop, links, scenario.costs, dice_of(scenario), self.watch, scenario.fenced_transport)
        config = _scheduler_config(scenario)
        self.scheduler = Scheduler(config, policy_of(scenario.policy, config))
        self._lives = RequestLives(self.scheduler, self.watch)
        self.doors = {
            gateway: Door(gateway, scenario.timers, self.loop, links, self.watch) for gateway in scenario.gateways
        }
        self.drained: list[Drained] = []
        self._num_taken = 0
        self._complete: set[AttemptId] = set()
        self._num_to_come = len(scenario.arrivals)
        self._severing: set[frozenset[NodeId]] = set()
        for plan in scenario.nodes:
            self._join(plan, 0)
        for arrival in scenario.arrivals:
            self.loop.at(0.02 + arrival.at, self._arrive, arrival)
        self.loop.after(scenario.timers.tick_s, self._tick)
        if Fault.GATEWAY in scenario.faults:
            self._num_to_come += 1
            self.loop.at(0.02 + scenario.gateway_dies_at, self.end_gateway, scenario.gateways[0])
        self.watch.after = Faults(scenario, self).after_event

    # ── a run: faults on, then off until all is quiet ────────────────────────────────────────────────────────────────

    def run(self, faults_s: float, calm_s: float) -> None:
        """Run `faults_s` with faults and until all requests came, then without; all must be quiet within `calm_s`."""
        self.loop.run(faults_s)
        while self._num_to_come:
            self.loop.run(self.loop.now + self.scenario.timers.tick_s)
        self.calm_down()
        self.run_until_quiet(calm_s)

    def calm_down(self) -> None:
        """From now on nothing new goes wrong, and the operator wants every node to do everything."""
        link = self.scenario.costs.link
        self.watch.after = lambda address, event: None
        self.place.dice = Dice()
        self.place.links.delays = Delays(link.message_s, reorder=self.place.links.delays.reorder)
        alive = [host for host in self.alive() if not host.is_doomed]
        mixes = tuple(mix_of("mixed", host.plan.prefill_tokens_per_step, host.plan.max_decode_rows) for host in alive)
        if self.scenario.faults & {Fault.MIX, Fault.DRAIN}:
            self.tell(SCHEDULER, Overridden(tuple(host.node for host in alive), mixes))

    def run_until_quiet(self, limit_s: float) -> None:
        """Raises AssertionError, with what is not quiet, when `limit_s` is not enough."""
        end = self.loop.now + limit_s
        while noise := self.noise():
            assert self.loop.now < end, f"not quiet {limit_s:g} s after the last fault: {noise}"
            self.loop.run(self.loop.now + LOOKS_PER_TICK * self.scenario.timers.tick_s)

    def noise(self) -> list[str]:
        """What still goes on."""
        found = [
            f"{door.streams.num_open} streams at {gateway}"
            for gateway, door in self.doors.items()
            if door.streams.num_open
        ]
        if self._num_to_come:
            found.append(f"{self._num_to_come} arrivals and joins to come")
        if self._severing or self.place.links.num_under_way:
            found.append(
                f"{self.place.links.num_under_way} messages under way, {len(self._severing)} links being severed"
            )
        if not self.scheduler.is_idle():
            found.append("the scheduler")
        found += [host.node for host in self.alive() if not host.is_quiet or host.is_doomed]
        found += [f"{host.node} sleeps" for host in self.alive() if host.paused_until > self.loop.now]
        return found

    # ── what the dice may break ──────────────────────────────────────────────────────────────────────────────────────

    def alive(self) -> list[Host]:
        """Nodes whose process runs."""
        return [host for host in self.place.hosts.values() if not host.is_dead]

    def any_open(self, chance: Random) -> RequestId | None:
        """One of the requests that have not ended."""
        requests = [
            request for door in self.doors.values() for request, answer in door.answers.items() if answer.ended is None
        ]
        return chance.choice(requests) if requests else None

    def cancel(self, request: RequestId) -> None:
        """Its client leaves."""
        for door in self.doors.values():
            if request in door.answers and door.answers[request].ended is None:
                self.watch.happened(Fault.CANCEL)
                door.cancel(request)

    def end_node(self, host: Host, dies_in_s: float, known_in_s: float) -> None:
        """A process ends, the others hear of it, each in its own time, and later a new incarnation joins."""
        host.is_doomed = True
        dead_s, chance = self.scenario.timers.dead_s, self.loop.chance
        self._num_to_come += 1
        self.loop.after(dies_in_s, self._die, host)
        self.loop.after(known_in_s, self.tell, SCHEDULER, NodeLost(host.node, "its process ended"))
        for survivor in self.alive():
            if survivor is not host:
                self.loop.after(known_in_s + dead_s * chance.random(), self._lose_peer, survivor, host.node)
        joins_in_s = max(dies_in_s, known_in_s) + chance.choice((0.1, 2.0)) * dead_s * chance.random()
        self.loop.after(joins_in_s, self._join_again, host)

    def end_gateway(self, gateway: GatewayId) -> None:
        """A gateway's process ends, and its clients' answers with it; the scheduler hears of it a while later."""
        self.watch.happened(Fault.GATEWAY)
        self.doors.pop(gateway).is_dead = True
        self.place.links.end(gateway)
        known_in_s = self.scenario.timers.dead_s * self.loop.chance.random()
        self.loop.after(known_in_s, self._lose_gateway, gateway)

    def sever(self, one: Host, other: Host) -> None:
        """Cut the link between two nodes; both are told, each in its own time, and talk again from there."""
        pair = frozenset((one.node, other.node))
        if pair in self._severing:
            return
        self.watch.happened(Fault.SEVER)
        self._severing.add(pair)
        self.place.links.cut(one.node, other.node)
        limit_s, chance = self.scenario.timers.dead_s, self.loop.chance
        told_in_s = [limit_s * chance.random() * chance.choice((0.1, 1.0)) for _ in range(2)]
        self.loop.after(told_in_s[0], self._lose_peer, one, other.node)
        self.loop.after(told_in_s[1], self._lose_peer, other, one.node)
        self.loop.after(max(told_in_s), self._severing.discard, pair)

    def drain(self, node: NodeId) -> None:
        """The operator wants a node empty; `drained` has the answer."""
        self.watch.happened(Fault.DRAIN)
        self.tell(SCHEDULER, DrainAsked(node))

    def tell(self, to: Address, event: Event) -> None:
        """An event from inside the process that hosts the scheduler: supervisor or operator."""
        self._deliver(to, event)

    # ── shells ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _deliver(self, to: Address, event: Event) -> None:
        if to == SCHEDULER:
            self._schedule(event)  # type: ignore[arg-type]
        elif to == OPERATOR:
            self.drained.append(event)  # type: ignore[arg-type]
        elif to in self.doors:
            self.doors[GatewayId(to)].take(event)  # type: ignore[arg-type]
        else:
            self.place.hosts[NodeId(to)].take(event)  # type: ignore[arg-type]

    def _schedule(self, event: SchedulerEvent) -> None:
        if isinstance(event, AttemptFinished):
            self._check_end(event)
        self._lives.before(event)
        for command in self.scheduler.handle(event, self.loop.now):
            assert isinstance(command, Tell), f"the scheduler may only tell: {command}"
            self.place.links.send(SCHEDULER, command.to, command.event)
        self._lives.after(event)
        self._num_taken += 1
        if self._num_taken % CHECK_EVERY == 0:
            self.scheduler.check()
        self.watch.taken(self.loop.now, SCHEDULER, event)

    def _check_end(self, event: AttemptFinished) -> None:
        """Where nothing harmful happens and no message is late, no handoff fails.

        An answer that was complete with its first token is handed to nobody: its reader is refused.
        """
        if event.end is AttemptEnd.FINISHED:
            self._complete.add(event.attempt)
        failed = event.end in FAILURES and event.attempt not in self._complete
        assert self.scenario.may_fail or not failed, f"{event.attempt} ends {event.end} though nothing went wrong"

    def _tick(self) -> None:
        self._schedule(Tick())
        self.loop.after(self.scenario.timers.tick_s, self._tick)

    def _lose_gateway(self, gateway: GatewayId) -> None:
        self._num_to_come -= 1
        self.tell(SCHEDULER, GatewayLost(gateway, "its process ended"))

    def _arrive(self, arrival: Arrival) -> None:
        """At its gateway; whoever finds nobody there goes to another one."""
        self._num_to_come -= 1
        door = self.doors.get(arrival.gateway) or next(iter(self.doors.values()))
        door.arrive(arrival)

    def _join(self, plan: NodePlan, incarnation: int) -> None:
        scenario, node = self.scenario, NodeId(f"{plan.name}@{incarnation}")
        mix = mix_of(plan.role, plan.prefill_tokens_per_step, plan.max_decode_rows)
        config = NodeConfig(
            scenario.layout,
            scenario.kv,
            plan.num_blocks,
            scenario.max_model_len,
            EOS_TOKEN_IDS,
            mix,
            plan.max_steps_in_flight,
            scenario.timers,
            plan.max_draft_tokens,
            plan.max_saved_blocks,
            scenario.costs.preemption(plan.copy_s_per_block),
        )
        host = self.place.hosts[node] = Host(node, plan, config, self.place)
        host.start_ticking(scenario.timers.tick_s)
        spec = NodeSpec(scenario.layout, scenario.kv, plan.num_blocks, scenario.max_model_len, mix)
        self.tell(SCHEDULER, NodeJoined(node, spec))

    def _join_again(self, host: Host) -> None:
        self._num_to_come -= 1
        self._join(host.plan, int(host.node.rpartition("@")[2]) + 1)

    def _die(self, host: Host) -> None:
        host.end()
        self.place.links.end(host.node)

    def _lose_peer(self, host: Host, peer: NodeId) -> None:
        """One end learns that it has lost the other; its host lets go of the link before its machine hears of it."""
        if not host.is_dead:
            self.place.links.tell_lost(host.node, peer)
            host.take(PeerLost(peer))


def _scheduler_config(scenario: Scenario) -> SchedulerConfig:
    expected = 1 if scenario.overcommit else 64
    wait_s = 4 * scenario.timers.dead_s
    return SchedulerConfig(
        expected_output_tokens=expected,
        rejoin_wait_s=wait_s,
        rebalance_gap=scenario.rebalance_gap,
        timers=scenario.timers,
        refuses_unattainable=scenario.predicts,
        learns_lengths=scenario.predicts,
    )
