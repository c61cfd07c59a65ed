"""Chooses every node's mix: how many prefill, how many decode, how many do both, and by which chunks.

Every few seconds, and at once when the load steps or nodes come and go. Forecasts of all layouts by closed forms, where
a planner is there corrected by replays of the last arrivals; the restraint says whether the best may be taken.
"""

from collections.abc import Set
from dataclasses import dataclass, field, replace

from core.commands import Tell
from core.decisions import Decided, Decision, DecisionKind, Fact, MixStep
from core.events import Event, RequestArrived, StreamEnded
from core.goodput import Outcome
from core.ids import OPERATOR, NodeId, node_name
from core.mix import Mix, NodeSpec
from core.request import SLO
from core.whatif import WhatIfAnswered
from scheduler.attained import Attained, AttainedConfig
from scheduler.capacity import Capacity, CapacityConfig
from scheduler.closed_forms import Load
from scheduler.config import SchedulerConfig
from scheduler.first_chunks import first_chunks
from scheduler.hedging import hedged, undivided
from scheduler.layouts import Floors, Option, PlanNode, Search
from scheduler.load_meter import LoadMeter, MeterConfig
from scheduler.plan_nodes import LinkMeter, plan_nodes
from scheduler.plans import Forecaster, Goal
from scheduler.reasons import facts_of, kind_of_change, sentence_of
from scheduler.replays import ReplayConfig, Replayed, Replays
from scheduler.restraint import Restraint, RestraintConfig, changes_of
from scheduler.view import ClusterView

OTHER_LOAD = 1.5
"""A load is another one where tokens in or out are so many times as many or as few."""

ALARMING_DOUBT = 0.3
"""With more, a load that seems too much is no alarm yet: too few requests came, too few answers ended."""

ENOUGH = 0.95
"""Of what is planned for: whoever is forecast to meet so much is not changed for having little room beyond."""


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """`advises`: recommends only. `slo` is for requests that were promised none. Plans are for `headroom` times the
    load, where that can be served. Infeasible is a load of which no layout is forecast to meet a share of `target`, for
    `alarm_s` on end. `replays` None: no planner is asked. `capacity` None: nobody is told how many nodes there should
    be.
    """

    advises: bool = False
    slo: SLO = field(default_factory=lambda: SLO(2.0, 0.1))
    target: float = 0.9
    headroom: float = 1.25
    interval_s: float = 2.0
    settling_interval_s: float = 0.5
    alarm_s: float = 4.0
    floors: Floors = field(default_factory=Floors)
    meter: MeterConfig = field(default_factory=MeterConfig)
    restraint: RestraintConfig = field(default_factory=RestraintConfig)
    attained: AttainedConfig = field(default_factory=AttainedConfig)
    replays: ReplayConfig | None = None
    capacity: CapacityConfig | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Mixes to set, and what to tell."""

    changes: tuple[tuple[NodeId, Mix], ...] = ()
    tells: tuple[Tell, ...] = ()


@dataclass(frozen=True, slots=True)
class _Plan:
    """One look at everything: what is, what there could be (best first), what comes and what is planned for."""

    nodes: list[PlanNode]
    comes: Load
    load: Load
    goal: Goal
    current: Option
    options: list[Option]
    uncorrected: dict[tuple[tuple[str, int], ...], Option]
    is_stepped: bool

    def best(self) -> Option:
        """The best; of those as good, to a hundredth, the nearest to what is. Never one that is forecast to be worse
        than the best aggregated or disaggregated one."""
        pure = (option for option in self.options if option.kind != "between")
        least = max(map(_goodput, pure), default=0.0)
        good = [option for option in self.options if option.forecast.goodput_rps >= least]
        enough = 0.99 * max(map(self.score, good))
        return min(
            (option for option in good if self.score(option) >= enough),
            key=lambda option: (len(changes_of(self.nodes, list(option.key))), -self.score(option)),
        )

    def score(self, option: Option) -> float:
        """What the option is worth, for the load that is planned for."""
        return option.score(self.load.rate_rps)

    def gain(self, option: Option) -> float:
        """How much more that is than what is, as a share. Room for more yet moves no nodes that are enough."""
        if self.current.forecast.attainment >= ENOUGH:
            before = max(_goodput(self.current), 1e-3 * self.load.rate_rps)
            return _goodput(option) * option.trust / before - self.current.trust
        before = self.score(self.current)
        return (self.score(option) - before) / max(before, 1e-3 * self.load.rate_rps)


class Controller:
    """Decides, and says why.

    Owns: what is known of the load, when it was planned, whether it is infeasible. Invariant: what it takes is forecast
    to be no worse than the best aggregated layout, and than the best disaggregated one where the load is known.
    """

    def __init__(self, config: ControllerConfig) -> None:
        self.config = config
        self._links = LinkMeter()
        self.restraint = Restraint(config.restraint)
        self.replays = Replays(config.replays or ReplayConfig())
        self.attained = Attained(config.attained)
        self.is_infeasible = False
        self._meter = LoadMeter(config.meter)
        self._capacity = Capacity(config.capacity) if config.capacity else None
        self._due_at = float("-inf")
        self._nodes: frozenset[tuple[NodeId, bool]] = frozenset()
        self._contrary_since: float | None = None
        self._chosen_for: Load | None = None
        self._has_begun = False
        self._advised: tuple[Mix, ...] = ()

    def observe(self, event: Event, view: ClusterView, now: float) -> None:
        """What the scheduler hears; changes nothing there."""
        if isinstance(event, RequestArrived):
            self._meter.note(event, view.lengths, now)
            if not event.request.is_offline:
                self.attained.note_arrived(event.request.id, event.request.slo or self.config.slo, now)
        elif isinstance(event, StreamEnded):
            self.attained.note_ended(event)
            if event.outcome is Outcome.FINISHED:
                self._meter.note_finished(event.request, event.num_tokens)

    def answer(self, event: WhatIfAnswered, now: float) -> bool:
        """The planner's answer: the next tick plans with it. False where it is stale."""
        is_fresh = self.replays.take(event, now)
        if is_fresh:
            self._due_at = now
        return is_fresh

    def tick(self, view: ClusterView, config: SchedulerConfig, pinned: Set[str], now: float) -> Verdict:
        """Plan, where it is time. `pinned` are the names of nodes that the operator has set."""
        self._meter.note_stats({n.node: n.stats for n in view.nodes.values() if n.stats is not None}, now)
        is_stepped = self._note_steps(view, pinned, now)
        if now < self._due_at and not is_stepped:
            return Verdict()
        settles = self.restraint.is_settling(now)
        self._due_at = now + (self.config.settling_interval_s if settles else self.config.interval_s)
        nodes = plan_nodes(view, pinned, self._links.byte_s(view, config))
        plan = self._plan(nodes, is_stepped or settles, now) if nodes else None
        if plan is None:
            return self._begin(nodes or [], now)
        verdict = self._choose(plan, view, now)
        tells = [*verdict.tells, *self._judge(plan, now)]
        if self._capacity is not None:
            tells += self._capacity.tick(plan.nodes, view, plan.comes, plan.goal, now)
        return Verdict(verdict.changes, tuple(tells))

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _note_steps(self, view: ClusterView, pinned: Set[str], now: float) -> bool:
        """Whether the load stepped just now, or the nodes that may be used are others than before."""
        views = view.nodes.values()
        nodes = frozenset((n.node, n.base_mix.role == "closed" or node_name(n.node) in pinned) for n in views)
        is_other, self._nodes = nodes != self._nodes, nodes
        is_stepped = self._meter.has_stepped(now) or is_other
        if is_stepped:
            self.restraint.step(now)
            self.replays.forget()
            self.attained.forget(now)
        return is_stepped

    def _plan(self, nodes: list[PlanNode], is_stepped: bool, now: float) -> _Plan | None:
        comes = self._meter.load(now)
        if comes is None or not any(node.is_free for node in nodes):
            return None
        goal = Goal(self._meter.slo() or self.config.slo, self.config.target)
        doubt = self._meter.doubt(comes)
        floors = replace(self.config.floors, mixed=undivided(sum(node.is_free for node in nodes), doubt))
        for headroom in (self.config.headroom, 1.0):
            load = comes.at(comes.rate_rps * headroom)
            search = Search(nodes, Forecaster(load, goal), floors)
            found = search.options()
            if max(map(_attainment, found)) >= goal.target:
                break  # where more than what comes is too much, the best is what serves most of what comes
        key = search.current().key
        found.sort(key=lambda option: option.key != key)
        probable = hedged(nodes, found, load, goal, doubt)
        replayed = [self.replays.corrected(option, load.rate_rps, now) for option in probable]
        self._hold(replayed[0], nodes, comes, goal, now)
        current, *_ = corrected = [self.attained.corrected(option, load.rate_rps, now) for option in replayed]
        options = sorted(corrected, key=lambda option: -option.forecast.goodput_rps)
        uncorrected = {option.key: option for option in found}
        return _Plan(nodes, comes, load, goal, current, options, uncorrected, is_stepped)

    def _hold(self, current: Option, nodes: list[PlanNode], comes: Load, goal: Goal, now: float) -> None:
        """What is attained against what is forecast of what is, for the load that comes."""
        search = Search(nodes, Forecaster(comes, goal), self.config.floors)
        forecast = self.replays.corrected(search.forecast(current.mixes), comes.rate_rps, now).forecast
        self.attained.hold(current.key, forecast.goodput_rps / comes.rate_rps, self._meter.bursts.dispersion(), now)

    def _begin(self, nodes: list[PlanNode], now: float) -> Verdict:
        """The first request is there and little is known: chunks that rows can bear."""
        if self._has_begun or not nodes or not self._meter.arrivals():
            return Verdict()
        self._has_begun, slo = True, self._meter.slo() or self.config.slo
        changes = first_chunks(nodes, slo.tpot_s)
        if not changes or self.config.advises:
            return Verdict()
        was = {node.node: node.mix for node in nodes}
        steps = tuple(MixStep(node, was[node], mix) for node, mix in changes)
        reason = "chunks that rows can bear, until more is known of the load"
        decision = Decision(now, DecisionKind.BUDGET, reason, steps, (Fact("tpot_slo_s", slo.tpot_s),))
        return Verdict(changes, (Tell(OPERATOR, Decided(decision)),))

    # ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _choose(self, plan: _Plan, view: ClusterView, now: float) -> Verdict:
        best = plan.best()
        changes = changes_of(plan.nodes, list(best.key))
        gain = plan.gain(best)
        asks = self._ask(plan, view, gain, now)
        if self.config.replays is not None and self.replays.is_waiting(now):
            return Verdict((), tuple(asks))
        share, is_other = len(changes) / len(plan.nodes), _differs(plan.load, self._chosen_for)
        num = self._meter.num_arrivals
        if not self.restraint.may_change(changes, share, gain, now, num_known=num, is_other_load=is_other):
            return Verdict((), tuple(asks))
        if self.config.advises:
            return Verdict((), (*asks, *self._advise(plan, best, changes, now)))
        self.restraint.changed(changes, now, num_known=num)
        self.attained.begin(now)
        self._chosen_for = plan.load
        kind = kind_of_change(changes)
        told = self._tell(plan, kind, best, changes, sentence_of(plan.current, best, changes, plan.is_stepped), now)
        mixes = dict(zip((node.node for node in plan.nodes), best.mixes, strict=True))
        return Verdict(tuple((node.node, mixes[node.node]) for node in changes), (*asks, told))

    def _ask(self, plan: _Plan, view: ClusterView, gain: float, now: float) -> list[Tell]:
        """The planner is asked of what is and of the best of each kind."""
        is_settled = gain < self.config.restraint.small_gain
        if self.config.replays is None or not self.replays.is_due(now, is_settled=is_settled):
            return []
        specs = [_believed(view, node) for node in plan.nodes]
        firsts = {option.kind: option for option in reversed(plan.options)}
        candidates = {option.key: option for option in (plan.current, *firsts.values())}
        others = sorted(plan.options, key=lambda o: (self.replays.knows(o), -plan.score(o)))
        candidates |= {option.key: option for option in others if option.key not in candidates}
        asked = [plan.uncorrected[key] for key in candidates]
        under = Replayed(plan.load, plan.goal.slo, self._links.bytes_per_s)
        return self.replays.ask(specs, asked, self._meter.arrivals(), under, now)

    def _advise(self, plan: _Plan, best: Option, changes: dict[PlanNode, str], now: float) -> list[Tell]:
        if len(self._advised) == len(plan.nodes):
            search, rate = Search(plan.nodes, Forecaster(plan.load, plan.goal), self.config.floors), plan.load.rate_rps
            replayed = self.replays.corrected(search.forecast(self._advised), rate, now)
            told = self.attained.corrected(replayed, rate, now)
            if plan.score(best) <= (1.0 + self.config.restraint.small_gain) * plan.score(told):
                return []
        self._advised = best.mixes
        reason = f"would be better: {sentence_of(plan.current, best, changes, plan.is_stepped)}"
        return [self._tell(plan, DecisionKind.ADVICE, best, changes, reason, now)]

    # ── saying ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _judge(self, plan: _Plan, now: float) -> list[Tell]:
        """The alarm: no layout meets the SLO for what comes now. Said once, and once when it is over."""
        search = Search(plan.nodes, Forecaster(plan.comes, plan.goal), self.config.floors)
        best = max(
            (self.replays.corrected(search.forecast(o.mixes), plan.comes.rate_rps, now) for o in plan.options),
            key=_attainment,
        )
        needed = self.config.target + (0.02 if self.is_infeasible else 0.0)
        is_known = self._meter.doubt(plan.comes) < ALARMING_DOUBT
        if (best.forecast.attainment < needed and is_known) == self.is_infeasible:
            self._contrary_since = None
            return []
        self._contrary_since = now if self._contrary_since is None else self._contrary_since
        if now - self._contrary_since < self.config.alarm_s:
            return []
        self.is_infeasible, self._contrary_since = not self.is_infeasible, None
        share = f"{best.forecast.attainment:.1%} of what comes can meet the SLO, {self.config.target:.0%} should"
        if self.is_infeasible:
            reason = f"no layout of these nodes is enough: at best {share}; the best one stays"
            return [self._tell(plan, DecisionKind.INFEASIBLE, plan.current, {}, reason, now)]
        return [
            self._tell(plan, DecisionKind.FEASIBLE, plan.current, {}, f"these nodes are enough again: {share}", now)
        ]

    def _tell(
        self, plan: _Plan, kind: DecisionKind, to: Option, changes: dict[PlanNode, str], reason: str, now: float
    ) -> Tell:
        mixes = dict(zip((node.node for node in plan.nodes), to.mixes, strict=True))
        steps = tuple(MixStep(node.node, node.mix, mixes[node.node]) for node in changes)
        facts = facts_of(plan.load, plan.goal, plan.current, to)
        before, after = plan.current.forecast.goodput_rps, to.forecast.goodput_rps
        return Tell(OPERATOR, Decided(Decision(now, kind, reason, steps, facts, before, after)))


def _differs(load: Load, other: Load | None) -> bool:
    """Whether as many tokens in, or out, would hardly come by chance where the other load does."""
    if other is None:
        return True
    sums = [(each.rate_rps * each.mean_prompt, each.rate_rps * each.mean_output) for each in (load, other)]
    return any(max(a, b) > OTHER_LOAD * min(a, b) for a, b in zip(*sums, strict=True))


def _goodput(option: Option) -> float:
    return option.forecast.goodput_rps


def _attainment(option: Option) -> float:
    return option.forecast.attainment


def _believed(view: ClusterView, node: PlanNode) -> NodeSpec:
    """A node's description, with what is believed of its costs now."""
    return replace(view.nodes[node.node].spec, costs=node.ability.costs)
