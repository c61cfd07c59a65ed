"""One node of a simulated fleet: carries out the commands of the real `Node` machine by counting and by the clock."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cluster.node import Node, NodeConfig
from cluster.simulated.counting import Ahead, CountingExecutor
from cluster.simulated.loop import Loop
from cluster.simulated.shared_links import SharedLinks
from cluster.simulated.truth import StepTruth
from core.commands import Command, Emit, FetchKV, Lend, Revoke, RunStep, Tell
from core.events import (
    AttemptEnd,
    Fenced,
    KVArrived,
    KVFailed,
    LeaseReleased,
    Lent,
    NodeEvent,
    Offered,
    PeerLost,
    StepDone,
    Tick,
)
from core.ids import Address, AttemptId, NodeId, RequestId
from core.step import StepPlan


@dataclass(slots=True)
class FleetPlace:
    """What all hosts share: time, links, how long answers really are, who lives, who runs a step, and what is handed
    over right now."""

    loop: Loop
    links: SharedLinks
    output_tokens: Mapping[RequestId, int]
    send: Callable[[Address, Address, object], None]
    alive: set[NodeId] = field(default_factory=set)
    running: set[NodeId] = field(default_factory=set)
    handoffs: set[AttemptId] = field(default_factory=set)
    peak_handoffs: int = 0


@dataclass(slots=True)
class HostUse:
    """What one incarnation did. `prefill_busy_s`: steps with prompts in them took so long, others `decode_busy_s`."""

    began_at: float
    ended_at: float | None = None
    prefill_busy_s: float = 0.0
    decode_busy_s: float = 0.0
    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0


@dataclass(slots=True)
class Running:
    """The step that runs, `num_runs` times from `began_at` on: the first takes `first_s`, each `growth_s` longer."""

    plan: StepPlan
    ahead: Ahead
    began_at: float
    first_s: float
    growth_s: float = 0.0
    num_runs: int = 1

    def seconds(self, num_runs: int) -> float:
        """What so many runs take."""
        return num_runs * (self.first_s + self.growth_s * (num_runs - 1) / 2)

    def num_begun(self, seconds: float) -> int:
        """How many runs have begun after so long, at most all."""
        low, high = 1, self.num_runs
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.seconds(middle) > seconds else (middle + 1, high)
        return low


class FleetHost:
    """A process with one node in it.

    Owns: the machine, its executor, the step that runs, and its account.
    A step that is run many times is one call; it ends with the run that is under way when anything else happens here.
    """

    def __init__(
        self, node: NodeId, config: NodeConfig, place: FleetPlace, truth: StepTruth, beside: StepTruth | None = None
    ) -> None:
        self.node = node
        self.machine = Node(node, config)
        self._truth = truth
        self._beside = beside
        self.use = HostUse(place.loop.now)
        self.is_dead = False
        self._block_bytes = config.kv.bytes_per_block
        self._place = place
        self._loop = place.loop
        self._executor = CountingExecutor(config.kv.block_size, place.output_tokens)
        self._running: Running | None = None
        self._tick_is_due = False
        self._tick_s = config.timers.tick_s
        self._ticked_at = self._loop.now + (self._loop.chance.random() - 1.0) * self._tick_s
        self._is_ticking = False
        self._is_told_idle = False
        place.alive.add(node)
        self._go_on_ticking()

    def take(self, event: NodeEvent) -> None:
        """Hand an event to the machine and carry out what it asks for."""
        if self.is_dead:
            return
        if self._running is not None and self._running.num_runs > 1:
            self._cut(self._running)
        self._handle(event)
        if not self._is_ticking:
            self._go_on_ticking()

    def _handle(self, event: NodeEvent) -> None:
        for command in self.machine.handle(event, self._loop.now):
            self._do(command)

    def end(self) -> None:
        """The process is gone, with all that ran in it."""
        self.is_dead = True
        self.use.ended_at = self._loop.now
        self._running = None
        self._place.running.discard(self.node)
        self._place.alive.discard(self.node)
        self._place.links.cut(self.node)

    def _go_on_ticking(self) -> None:
        """The next tick of its own phase."""
        num_ticks = int((self._loop.now - self._ticked_at) / self._tick_s) + 1
        self._ticked_at += num_ticks * self._tick_s
        self._is_ticking = True
        self._loop.at(self._ticked_at, self._tick)

    def _tick(self) -> None:
        """Where a step is run again and again, the machine hears of it after the present run, to know of the others.

        An idle machine has told that it is: until something happens to it, its ticks would tell the same again.
        """
        if self.is_dead:
            return
        if self.machine.is_idle() and self._is_told_idle:
            self._is_ticking = False
            return
        self._is_told_idle = self.machine.is_idle()
        self._go_on_ticking()
        if self._running is not None and self._running.num_runs > 1:
            self._tick_is_due = True
            self._cut(self._running)
        else:
            self._handle(Tick())

    def _do(self, command: Command) -> None:
        match command:
            case Tell(to, event):
                self._count_handoff(event)
                self._place.send(self.node, to, event)
            case Emit(gateway, tokens):
                self._place.send(self.node, gateway, tokens)
            case RunStep(plan, max_runs):
                self._begin(plan, max_runs)
            case FetchKV():
                self._fetch(command)
            case Lend(attempt, reader):
                self._loop.after(0.0, self.take, Lent(attempt, reader))
            case Revoke(attempt, reader):
                self._loop.after(0.0, self.take, Fenced(attempt, reader))

    def _count_handoff(self, event: object) -> None:
        place = self._place
        if isinstance(event, Offered):
            place.handoffs.add(event.attempt)
            place.peak_handoffs = max(place.peak_handoffs, len(place.handoffs))
        elif isinstance(event, LeaseReleased):
            place.handoffs.discard(event.attempt)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, plan: StepPlan, max_runs: int) -> None:
        assert self._running is None, f"{self.node} runs a step already"
        executor, truth = self._executor, self._truth
        if self._beside is not None:
            max_runs = 1  # by the next step the others may have begun or ended theirs
            truth = self._beside if self._place.running else truth
        self._place.running.add(self.node)
        ahead = executor.begin(plan)
        first_s = truth.step_s(ahead.chunks, ahead.num_rows, ahead.row_context)
        self._running = running = Running(plan, ahead, self._loop.now, first_s)
        num_runs = executor.num_runs(max_runs) if max_runs > 1 else 1
        if num_runs > 1:
            last = ahead.row_context + (num_runs - 1) * ahead.num_rows
            last_s = truth.step_s((), ahead.num_rows, last)
            running.num_runs, running.growth_s = num_runs, (last_s - first_s) / (num_runs - 1)
        self._loop.after(running.seconds(num_runs), self._end_step, running, num_runs)

    def _cut(self, running: Running) -> None:
        """The run that is under way is the last one."""
        num_runs = running.num_begun(self._loop.now - running.began_at)
        if num_runs < running.num_runs:
            running.num_runs = num_runs
            self._loop.at(running.began_at + running.seconds(num_runs), self._end_step, running, num_runs)

    def _end_step(self, running: Running, num_runs: int) -> None:
        if self._running is not running or running.num_runs != num_runs:
            return
        self._running = None
        self._place.running.discard(self.node)
        duration_s = running.seconds(num_runs)
        result = self._executor.finish(running.plan, duration_s, num_runs)
        self._account(running.ahead, duration_s, num_runs)
        self._handle(StepDone(result))
        if self._tick_is_due:
            self._tick_is_due = False
            self.take(Tick())

    def _account(self, ahead: Ahead, duration_s: float, num_runs: int) -> None:
        use = self.use
        use.num_steps += num_runs
        use.num_decode_tokens += ahead.num_rows * num_runs
        if ahead.chunks:
            use.prefill_busy_s += duration_s
            use.num_prefill_tokens += sum(tokens for tokens, _ in ahead.chunks)
        else:
            use.decode_busy_s += duration_s

    # ── fetches ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _fetch(self, command: FetchKV) -> None:
        num_bytes = len(command.into.block_ids) * self._block_bytes

        def end(is_there: bool) -> None:
            event: NodeEvent = KVArrived(command.attempt, command.fetch)
            if not is_there or command.handle.owner not in self._place.alive:
                why = f"{command.handle.owner} is gone"
                event = KVFailed(command.attempt, command.fetch, AttemptEnd.KV_LOST, why)
            self._loop.after(0.0, self.take, event)

        self._place.links.begin(command.handle.owner, self.node, num_bytes, end)

    def lose_peer(self, peer: NodeId) -> None:
        """It hears that another node is gone."""
        self.take(PeerLost(peer))
