"""The decode machine of one node: takes attempts in, and decodes all its rows together."""

from array import array
from dataclasses import dataclass, replace

from core.commands import Command, Emit, Tell
from core.events import AttemptEnd, DecodeEvent, MigrateAsked, PrefillDone, Stayed
from core.finish import finish_reason
from core.ids import SCHEDULER, AttemptId, GatewayId, NodeId
from core.lifecycle import DecodeState
from core.request import Request, unpack_tokens
from core.stats import Timing
from core.step import RowJoin, StepResult
from decode_worker.batching import DecodeRow, DecodeRows
from decode_worker.config import DecodeConfig
from decode_worker.emission import Emission, Taken, tokens_of
from decode_worker.intake import Intake
from decode_worker.leaving import seal, stay, timing_so_far
from decode_worker.planning import Planner
from decode_worker.reservations import Incoming
from decode_worker.rows import Rows
from decode_worker.saving import let_go
from engine.blocks import BlockPool


@dataclass(frozen=True, slots=True)
class AdoptedAttempt:
    """An attempt that was prefilled on this very node."""

    id: AttemptId
    request: Request
    gateway: GatewayId
    log: bytes
    table: tuple[int, ...]
    done: PrefillDone
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class Departure:
    """A row whose blocks are sealed and belong to the node's lender from now on; `row` is what could come back."""

    row: DecodeRow
    to: NodeId
    timing: Timing

    @property
    def log(self) -> bytes:
        """The answer but for its newest token, packed: what has KV behind the prompt."""
        return self.row.answer[:-1].tobytes()


class DecodeWorker:
    """Decides for all attempts that this node decodes.

    Owns: the rows, the intake, and counters that only rise: `num_drafted` guesses were tried, `num_accepted` confirmed.
    """

    def __init__(self, config: DecodeConfig, pool: BlockPool) -> None:
        self._config = config
        self._pool = pool
        self._rows = Rows(config.node, pool)
        self.intake = Intake(config, pool)
        self.planner = Planner(config, pool, self._rows)
        self._departed: list[Departure] = []
        self.num_drafted = 0
        self.num_accepted = 0

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def knows(self, attempt: AttemptId) -> bool:
        """Whether this attempt is here and not gone."""
        return attempt in self._rows or attempt in self.intake

    def state_of(self, attempt: AttemptId) -> DecodeState:
        """The state of an attempt; GONE where it is not here."""
        row = self._rows.get(attempt)
        return row.state if row else self.intake.state_of(attempt)

    @property
    def attempts(self) -> tuple[AttemptId, ...]:
        """All attempts that are not gone."""
        return (*self.intake.attempts, *self._rows.attempts)

    @property
    def num_rows(self) -> int:
        """Rows that are running or waiting for their turn, or for blocks."""
        return sum(row.end is None for row in self._rows)

    @property
    def num_offline(self) -> int:
        """Rows of the offline class."""
        return self._rows.num_offline

    def is_pressed(self, step_s: float) -> bool:
        """Whether steps of this length are too long for a row that is not of the offline class."""
        targets = (row.request.slo.tpot_s for row in self._rows if row.request.slo and not row.request.is_offline)
        return any(target < step_s for target in targets)

    @property
    def num_saved_blocks(self) -> int:
        """Blocks in host memory, or on their way there."""
        return self._rows.num_saved_blocks

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held and nothing awaited."""
        return not self._rows and self.intake.is_idle

    def tables(self) -> list[tuple[int, ...]]:
        """The block tables held here."""
        return [row.table for row in self._rows] + self.intake.tables()

    def check(self) -> None:
        """Asserts what must hold between two events."""
        self._rows.check()
        num_saved, most = self.num_saved_blocks, self._config.max_saved_blocks
        assert num_saved <= most, f"{num_saved} blocks are saved, {most} may be"

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: DecodeEvent, now: float) -> list[Command]:
        """One event of this machine's own."""
        if isinstance(event, MigrateAsked):
            return self._on_migrate_asked(event)
        commands = self.intake.handle(event, now)
        for incoming in self.intake.take_arrived():
            self._join(incoming, now)
        return commands

    def adopt(self, attempt: AdoptedAttempt, now: float) -> None:
        """This node's own prefill machine hands an attempt over: its executor row stays, nothing moves."""
        self._pool.adopt(attempt.table)
        done = attempt.done
        row = DecodeRow(
            attempt.id,
            attempt.request,
            attempt.gateway,
            attempt.table,
            done.num_tokens,
            _answer_of(attempt.log, done),
            done.timing,
            now,
            attempt.num_preemptions,
        )
        row.num_told, row.num_sealed = len(attempt.table), done.num_tokens // self._config.block_size
        self._rows.add(row)

    def drop(self, attempt: AttemptId) -> list[Command]:
        """Give an attempt up, in whatever state it is."""
        if attempt in self.intake:
            return self.intake.drop(attempt)
        return self._rows.end(self._rows[attempt], AttemptEnd.DROPPED)

    def lose_peer(self, node: NodeId) -> list[Command]:
        """Another node is gone: what it lends is lost, and nobody leaves for it."""
        staying = [row for row in self._rows if row.state is DecodeState.LEAVING and row.to == node]
        for row in staying:
            stay(row)
        return self.intake.lose_peer(node) + [self._stayed(row.id) for row in staying]

    def take_departed(self) -> list[Departure]:
        """Rows that the node's lender takes over, once."""
        departed, self._departed = self._departed, []
        return departed

    def take_back(self, row: DecodeRow) -> None:
        """The lender gives a row back with its blocks: it goes on, as the youngest."""
        stay(row)
        self._pool.adopt(row.table)
        self._rows.add(row)

    def admit(self, now: float) -> list[Command]:
        """Blocks may have become free: for attempts on their way in, once no row lacks any."""
        return [] if self.planner.is_short else self.intake.admit(now)

    def finish_step(self, result: StepResult, now: float) -> list[Command]:
        """A step is over: its tokens go to their gateways, complete answers end, and so do rows that failed alone."""
        held, tokens = self._rows.close_step(result.step), tokens_of(result)
        emissions: dict[GatewayId, Emission] = {}
        ends: list[Command] = []
        for column, row in enumerate(held.running):
            num_allowed, row.num_drafts = row.num_drafts, 0
            if row.id in result.failed:
                self._pool.unpublish(row.table)
                ends += self._rows.end(row, AttemptEnd.STEP_FAILED)
            elif row.end is not None:
                ends += self._rows.settle(row)
            else:
                num_tried = result.num_drafts[column] if result.num_drafts else 0
                self._learn(row, num_allowed, num_tried, len(tokens[row.id]))
                emission = emissions.setdefault(row.gateway, Emission())
                if self._take(row, tokens[row.id], emission, now):
                    ends += self._rows.end(row, AttemptEnd.FINISHED)
        for row in (*held.saved, *held.restored):
            if row.end is not None:
                ends += self._rows.settle(row)
            elif row.state is DecodeState.SAVED:
                let_go(row, self._pool)
        digests = dict(zip(result.sealed, result.digests, strict=True))
        for row in held.leaving:
            ends += self._depart(row, digests, now)
        return [Emit(gateway, emission.event()) for gateway, emission in emissions.items()] + ends

    def fail_step(self, step: int) -> list[Command]:
        """The executor could not run it: the rows that it held are lost, those that it copied as well."""
        held = self._rows.close_step(step)
        commands: list[Command] = []
        for row in (*held.running, *held.saved, *held.restored):
            row.num_drafts = 0
            commands += self._rows.end(row, AttemptEnd.STEP_FAILED)
        for row in held.leaving:
            if row.end is not None:
                commands += self._rows.settle(row)
            elif row.state is DecodeState.LEAVING:
                stay(row)
                commands.append(self._stayed(row.id))
        return commands

    # ── planning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def next_rows(
        self, max_rows: int, step: int, now: float, *, with_offline: bool = True
    ) -> tuple[DecodeRows, list[Command]]:
        """The decode part of step number `step`, and reports of rows that had to give way."""
        return self.planner.next_rows(max_rows, step, now, with_offline=with_offline)

    def take_left(self) -> tuple[AttemptId, ...]:
        """Rows that the executor may forget, once."""
        return self._rows.take_left()

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _join(self, incoming: Incoming, now: float) -> None:
        offer, done = incoming.offer, incoming.done
        assert done is not None
        request, table = offer.request, incoming.table
        answer = _answer_of(offer.log, done)
        tokens = request.token_ids + answer.tobytes()
        generations = self._pool.generations(table)
        num_prompt_tokens = request.prompt.num_tokens
        join = RowJoin(offer.attempt, tokens, done.num_tokens, request.sampling, table, generations, num_prompt_tokens)
        timing = replace(
            done.timing,
            reserve_s=done.timing.reserve_s + max(0.0, incoming.granted_at - incoming.done_at),
            handoff_s=done.timing.handoff_s + now - max(incoming.granted_at, incoming.done_at),
        )
        self._rows.add(
            DecodeRow(
                offer.attempt,
                request,
                offer.gateway,
                table,
                done.num_tokens,
                answer,
                timing,
                now,
                offer.num_preemptions,
                join,
                num_sealed=done.num_tokens // self._config.block_size,
            )
        )

    def _learn(self, row: DecodeRow, num_allowed: int, num_tried: int, num_tokens: int) -> None:
        """What became of its guesses: one token comes in any case, the others are confirmed drafts."""
        if not num_allowed:
            row.drafting.skip()
            return
        row.drafting.learn(num_allowed, num_tried, num_tokens - 1)
        self.num_drafted += num_tried
        self.num_accepted += num_tokens - 1

    def _take(self, row: DecodeRow, tokens: list[Taken], emission: Emission, now: float) -> bool:
        """Whether its answer is complete; what the executor has won beyond that is nobody's."""
        row.num_context += len(tokens) - 1
        answer, sampling, eos = row.answer, row.request.sampling, self._config.eos_token_ids
        index, finish = len(answer), None
        for number, (token_id, _) in enumerate(tokens, 1):
            answer.append(token_id)
            finish = finish_reason(token_id, index + number, sampling, eos)
            if finish is not None:
                tokens = tokens[:number]
                break
        if tokens:
            emission.add(row.id, index, tokens, finish, None if finish is None else timing_so_far(row, now))
        return finish is not None

    # ── leaving ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_migrate_asked(self, event: MigrateAsked) -> list[Command]:
        """A row runs no further step; what is no row, or is saved, cannot leave now."""
        row = self._rows.get(event.attempt)
        if row is not None and row.state is DecodeState.LEAVING:
            return []
        if row is None or not row.is_running or event.to == self._config.node:
            return [self._stayed(event.attempt)]
        row.state, row.to = DecodeState.LEAVING, event.to
        return []

    def _depart(self, row: DecodeRow, digests: dict[int, bytes], now: float) -> list[Command]:
        """It is sealed. One that was called back meanwhile, and runs again, is not taken by what was sealed before."""
        if row.end is not None:
            return self._rows.settle(row)
        if row.state is DecodeState.LEAVING and not self._rows.is_in_flight(row):
            assert row.to is not None
            seal(row, digests, self._pool, self._config.block_size)
            self._rows.take_out(row)
            self._departed.append(Departure(row, row.to, timing_so_far(row, now)))
        return []

    def _stayed(self, attempt: AttemptId) -> Tell:
        return Tell(SCHEDULER, Stayed(attempt, self._config.node, was_offered=False))


def _answer_of(log: bytes, done: PrefillDone) -> "array[int]":
    """The answer as it is when a row begins: what earlier attempts delivered, and the newest token."""
    return array("I", (*unpack_tokens(log), done.token_id))
