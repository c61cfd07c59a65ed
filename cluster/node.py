"""One node: its two machines over one block pool, under the current mix. Merges their rows into steps. Pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import assert_never

from core.commands import Command, RunStep, Tell
from core.costs import StepWork
from core.events import (
    AttemptEnd,
    AttemptFinished,
    ClaimAnswered,
    Claimed,
    Dropped,
    Fenced,
    KVArrived,
    KVFailed,
    LeaseReleased,
    LeasesRenewed,
    Lent,
    MigrateAsked,
    MixChanged,
    NodeEvent,
    Offered,
    PeerLost,
    Sealed,
    StatsReported,
    StepDone,
    StepFailed,
    Submitted,
    Tick,
)
from core.flushing import FlushAsked, Flushed
from core.ids import SCHEDULER, AttemptId, LayoutId, NodeId
from core.kv import KVLayout
from core.mix import Mix
from core.stats import NodeStats
from core.step import StepPlan, StepResult
from core.timers import Timers
from decode_worker.batching import DecodeRow, DecodeRows
from decode_worker.config import DecodeConfig, PreemptionCosts
from decode_worker.worker import AdoptedAttempt, DecodeWorker, Departure
from engine.blocks import BlockPool
from prefill_worker.batching import PrefillRows
from prefill_worker.config import PrefillConfig
from prefill_worker.migrants import Migrant
from prefill_worker.worker import PrefillWorker

MAX_TOMBSTONES = 4096

OFFLINE_PAUSE_STEPS = 8
"""A step was too long for a row's TPOT: for so many the offline class is left out, then it is tried again."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a node is. `max_steps_in_flight` is 1, or 2 to plan the next step while one runs.

    `max_draft_tokens`: how many tokens a row may guess per step; 0: none. The KV of up to `max_saved_blocks` blocks may
    wait in host memory while others use them, where that is cheaper by `costs` than to compute it again; None: never.
    `max_runs`: how often a step that only decodes may be run before its result is told; above 1 one step is in flight.
    """

    layout: LayoutId
    kv: KVLayout
    num_blocks: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    mix: Mix
    max_steps_in_flight: int = 1
    timers: Timers = field(default_factory=Timers)
    max_draft_tokens: int = 0
    max_saved_blocks: int = 0
    costs: PreemptionCosts | None = None
    max_runs: int = 1


class Node:
    """Hands each event to the machine that it concerns, then plans.

    Owns: the pool, the mix, step numbers, the steps in flight, tombstones of attempts that were dropped unmet, and rows
    that are neither machine's: their blocks are lent, and where nobody takes them they come back.
    """

    def __init__(self, node: NodeId, config: NodeConfig) -> None:
        assert config.max_runs == 1 or (config.max_steps_in_flight == 1 and not config.max_draft_tokens), "repeats"
        self.node = node
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.mix = config.mix
        block_size, eos, timers = config.kv.block_size, config.eos_token_ids, config.timers
        self.prefill = PrefillWorker(PrefillConfig(node, config.layout, block_size, eos, timers), self.pool)
        self.decode = DecodeWorker(_decode_config(node, config), self.pool)
        self._in_flight: deque[tuple[int, StepWork]] = deque()
        self._num_steps = 0
        self._num_repeats = 0
        self._step_s = 0.0
        self._work = StepWork()
        self._busy_s = 0.0
        self._pauses_until = 0
        self._tombstones: dict[AttemptId, float] = {}
        self._lent_rows: dict[AttemptId, DecodeRow] = {}
        self._budget_tokens = config.mix.prefill_tokens_per_step or config.kv.block_size
        self._max_rows = config.mix.max_decode_rows or 1
        self._num_dropped_events = 0

    def handle(self, event: NodeEvent, now: float) -> list[Command]:
        """Take one event; never blocks. The commands are to be carried out in order."""
        commands = self._dispatch(event, now)
        for prefill, done in self.prefill.take_adopted():
            asked = prefill.asked
            self.decode.adopt(
                AdoptedAttempt(
                    prefill.id, asked.request, asked.gateway, asked.log, prefill.table, done, asked.num_preemptions
                ),
                now,
            )
        for departure in self.decode.take_departed():
            self._lent_rows[departure.row.id] = departure.row
            commands += self.prefill.lend_row(_migrant_of(departure), now)
        for attempt in self.prefill.take_returned():
            self.decode.take_back(self._lent_rows.pop(attempt))
        if self._lent_rows:
            for attempt in [attempt for attempt in self._lent_rows if not self.prefill.knows(attempt)]:
                del self._lent_rows[attempt]
        return commands + self._plan(now)

    def stats(self) -> NodeStats:
        """What this node says of itself."""
        return NodeStats(
            queued_tokens=self.prefill.num_queued_tokens,
            prefilling=self.prefill.num_prefilling,
            leases=len(self.prefill.leases),
            incoming=len(self.decode.intake),
            running_rows=self.decode.num_rows,
            blocks=self.pool.counts(),
            mix_epoch=self.mix.epoch,
            num_steps=self._num_steps + self._num_repeats,
            step_s=self._step_s,
            num_dropped_events=self._num_dropped_events
            + self.prefill.num_dropped_events
            + self.decode.intake.num_dropped_events,
            num_prompt_tokens=self.prefill.num_prompt_tokens,
            num_cached_tokens=self.prefill.num_cached_tokens,
            num_preempted=self.decode.planner.num_preempted,
            num_saved=self.decode.planner.num_saved,
            num_restored=self.decode.planner.num_restored,
            num_drafted=self.decode.num_drafted,
            num_accepted=self.decode.num_accepted,
            num_migrated=self.prefill.num_migrated,
            work=self._work,
            busy_s=self._busy_s,
            queued_offline_tokens=self.prefill.line.num_offline_tokens,
        )

    def is_idle(self) -> bool:
        """Whether no attempt is here in any state, and no step runs. Tombstones may remain: they hold nothing."""
        return not self._in_flight and not self.prefill.attempts and self.decode.is_idle

    def check(self) -> None:
        """Asserts the invariants: the pool's own, and that every reference belongs to a table."""
        self.pool.check()
        self.decode.check()
        tables = self.prefill.tables() + self.decode.tables()
        held = sum(len(table) for table in tables)
        assert held == self.pool.num_references(), f"{held} blocks in tables, {self.pool.num_references()} references"
        assert not set(self.prefill.attempts) & set(self.decode.attempts), "an attempt is at both machines"
        assert self._lent_rows.keys() <= set(self.prefill.attempts), "a row is kept whose blocks are nobody's"

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _dispatch(self, event: NodeEvent, now: float) -> list[Command]:
        match event:
            case StepDone(result):
                return self._on_step_done(result, now)
            case StepFailed(step, _):
                self._leave_flight(step)
                return self.prefill.fail_step(step) + self.decode.fail_step(step)
            case Submitted(attempt) | Offered(attempt) if attempt in self._tombstones:
                return self._on_dropped_before(event)
            case Submitted() | Claimed() | LeasesRenewed() | LeaseReleased() | Lent() | Fenced():
                return self.prefill.handle(event, self.mix, now)
            case Offered() | ClaimAnswered() | KVArrived() | KVFailed() | MigrateAsked():
                return self.decode.handle(event, now)
            case Sealed(attempt):
                return [] if attempt in self._tombstones else self.decode.handle(event, now)
            case Dropped(attempt):
                return self._on_dropped(attempt, now)
            case PeerLost(node):
                return self.prefill.lose_peer(node) + self.decode.lose_peer(node)
            case MixChanged(mix):
                self._on_mix(mix)
                return []
            case FlushAsked(flush):
                return [Tell(SCHEDULER, Flushed(self.node, flush, self.pool.flush()))]
            case Tick():
                return self._on_tick(now)
            case _:
                assert_never(event)

    def _on_step_done(self, result: StepResult, now: float) -> list[Command]:
        work, num_runs = self._leave_flight(result.step), result.num_runs
        self._work = self._work.plus(work if num_runs == 1 else work.repeated(num_runs))
        self._num_repeats += num_runs - 1
        self._step_s = result.duration_s / num_runs
        self._busy_s += result.duration_s
        has_offline = self.decode.num_offline or self.prefill.line.has_offline
        if has_offline and self.decode.is_pressed(self._step_s):
            self._pauses_until = self._num_steps + OFFLINE_PAUSE_STEPS
        return self.prefill.finish_step(result, now) + self.decode.finish_step(result, now)

    def _leave_flight(self, step: int) -> StepWork:
        expected, work = self._in_flight.popleft()
        assert step == expected, f"step {step} is over, {expected} was next"
        return work

    def _on_dropped(self, attempt: AttemptId, now: float) -> list[Command]:
        if self.decode.knows(attempt):
            return self.decode.drop(attempt)
        if self.prefill.knows(attempt):
            return self.prefill.drop(attempt)
        self.decode.intake.forget_early(attempt)
        if len(self._tombstones) >= MAX_TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        self._tombstones[attempt] = now
        return [Tell(SCHEDULER, AttemptFinished(attempt, self.node, AttemptEnd.DROPPED))]

    def _on_dropped_before(self, event: Submitted | Offered) -> list[Command]:
        """It was dropped before it came: nothing is held here, and a lender may let go."""
        report = Tell(SCHEDULER, AttemptFinished(event.attempt, self.node, AttemptEnd.DROPPED))
        if isinstance(event, Submitted):
            return [report]
        return [Tell(event.handle.owner, LeaseReleased(event.attempt, self.node)), report]

    def _on_mix(self, mix: Mix) -> None:
        """Resident work goes on with the last budgets that were not zero."""
        if mix.epoch <= self.mix.epoch:
            self._num_dropped_events += 1
            return
        self.mix = mix
        self._budget_tokens = mix.prefill_tokens_per_step or self._budget_tokens
        self._max_rows = mix.max_decode_rows or self._max_rows

    def _on_tick(self, now: float) -> list[Command]:
        commands = self.prefill.tick(now) + self.decode.intake.tick(now)
        if self._tombstones:
            lease_s = self.config.timers.lease_s
            self._tombstones = {attempt: at for attempt, at in self._tombstones.items() if now - at <= lease_s}
        return [*commands, Tell(SCHEDULER, StatsReported(self.node, self.stats()))]

    # ── planning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, now: float) -> list[Command]:
        """Steps as far as they may be planned ahead, then blocks for attempts on their way in: rows come first."""
        commands: list[Command] = []
        while len(self._in_flight) < self.config.max_steps_in_flight:
            step = self._num_steps
            pauses = step < self._pauses_until
            decode, preempted = self.decode.next_rows(self._max_rows, step, now, with_offline=not pauses)
            commands += preempted
            may_begin, with_offline = not self.decode.planner.is_short, not (pauses and decode.attempts)
            prefill = self.prefill.next_rows(
                self._budget_tokens, step, now, may_begin=may_begin, with_offline=with_offline
            )
            if decode.is_empty and not prefill.attempts:
                break
            self._in_flight.append((step, _work_of(decode, prefill)))
            self._num_steps += 1
            max_runs = 1 if prefill.attempts else decode.max_runs
            commands.append(RunStep(self._merge(step, decode, prefill), max_runs))
        return commands + self.decode.admit(now)

    def _merge(self, step: int, decode: DecodeRows, prefill: PrefillRows) -> StepPlan:
        max_drafts = (*decode.max_drafts, *(0 for _ in prefill.attempts))
        return StepPlan(
            step,
            (*decode.attempts, *prefill.attempts),
            (*(1 for _ in decode.attempts), *prefill.num_tokens),
            (*decode.joined, *prefill.joined),
            self.prefill.take_left() + self.decode.take_left(),
            tuple(decode.grown),
            (*decode.seal, *prefill.seal),
            max_drafts if any(max_drafts) else (),
            tuple(decode.saved),
            tuple(decode.restored),
        )


def _work_of(decode: DecodeRows, prefill: PrefillRows) -> StepWork:
    """What a step consists of; a step that only copies or seals counts as one without rows."""
    tokens, rows, context = sum(prefill.num_tokens), len(decode.attempts), decode.num_context
    mixed = (1, rows, context) if tokens and rows else (0, 0, 0)
    return StepWork(1 if tokens else 0, 0 if tokens else 1, tokens, prefill.num_pairs, rows, context, *mixed)


def _migrant_of(departure: Departure) -> Migrant:
    row = departure.row
    return Migrant(
        row.id,
        row.request,
        departure.log,
        row.gateway,
        departure.to,
        row.table,
        row.num_context,
        row.answer[-1],
        departure.timing,
        row.num_preemptions + row.num_saves,
    )


def _decode_config(node: NodeId, config: NodeConfig) -> DecodeConfig:
    return DecodeConfig(
        node,
        config.kv.block_size,
        config.eos_token_ids,
        config.timers,
        max_model_len=config.max_model_len,
        max_draft_tokens=config.max_draft_tokens,
        overlaps=config.max_steps_in_flight > 1,
        max_saved_blocks=config.max_saved_blocks,
        max_runs=config.max_runs,
        costs=config.costs,
    )
