"""The decode machine of one node: takes attempts in, and decodes all its rows together."""

from dataclasses import dataclass, field, replace

from core.commands import Command, Emit, Tell
from core.events import AttemptEnd, AttemptFinished, DecodeEvent, FinishReason, PrefillDone, TokensEmitted
from core.finish import finish_reason
from core.ids import SCHEDULER, AttemptId, GatewayId
from core.lifecycle import DecodeState
from core.request import Request, num_packed, pack_tokens
from core.stats import Timing
from core.step import RowJoin, StepResult
from decode_worker.batching import DecodeRow, DecodeRows, add_row, grow
from decode_worker.config import DecodeConfig
from decode_worker.intake import Intake
from decode_worker.preemption import next_victim
from decode_worker.reservations import Incoming
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


@dataclass(slots=True)
class _Emission:
    """The tokens of one step for one gateway, in columns."""

    attempts: list[AttemptId] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finishes: list[FinishReason | None] = field(default_factory=list)
    timings: list[Timing | None] = field(default_factory=list)

    def event(self) -> TokensEmitted:
        """The message."""
        columns = (self.attempts, self.indices, self.token_ids, self.finishes, self.timings)
        return TokensEmitted(*(tuple(column) for column in columns))  # type: ignore[arg-type]


class DecodeWorker:
    """Decides for all attempts that this node decodes.

    Owns: the rows and their block tables, and the intake.
    Invariant: a row's blocks go back only when no step that could touch them is in flight.
    """

    def __init__(self, config: DecodeConfig, pool: BlockPool) -> None:
        self._config = config
        self._pool = pool
        self._rows: dict[AttemptId, DecodeRow] = {}
        self._in_step: dict[int, list[DecodeRow]] = {}
        self._finished_step = -1
        self._left: list[AttemptId] = []
        self.intake = Intake(config, pool)

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
        return (*self.intake.attempts, *self._rows)

    @property
    def num_rows(self) -> int:
        """Rows that are running or waiting for their turn."""
        return sum(row.end is None for row in self._rows.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held and nothing awaited."""
        return not self._rows and self.intake.is_idle

    def tables(self) -> list[tuple[int, ...]]:
        """The block tables held here."""
        return [row.table for row in self._rows.values()] + self.intake.tables()

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: DecodeEvent, now: float) -> list[Command]:
        """One event of this machine's own."""
        commands = self.intake.handle(event, now)
        for incoming in self.intake.take_arrived():
            self._join(incoming, now)
        return commands

    def adopt(self, attempt: AdoptedAttempt, now: float) -> None:
        """This node's own prefill machine hands an attempt over: its executor row stays, nothing moves."""
        self._pool.adopt(attempt.table)
        done = attempt.done
        self._rows[attempt.id] = DecodeRow(
            attempt.id,
            attempt.request,
            attempt.gateway,
            attempt.table,
            done.num_tokens,
            num_packed(attempt.log) + 1,
            done.timing,
            now,
            attempt.num_preemptions,
        )

    def drop(self, attempt: AttemptId) -> list[Command]:
        """Give an attempt up, in whatever state it is."""
        if attempt in self.intake:
            return self.intake.drop(attempt)
        return self._end(self._rows[attempt], AttemptEnd.DROPPED)

    def finish_step(self, result: StepResult, now: float) -> list[Command]:
        """A step is over: its tokens go to their gateways, and complete answers end."""
        self._finished_step = result.step
        tokens = dict(zip(result.attempts, result.token_ids, strict=True))
        emissions: dict[GatewayId, _Emission] = {}
        ends: list[Command] = []
        for row in self._in_step.pop(result.step, ()):
            row.num_in_flight -= 1
            if row.end is not None:
                ends += self._settle(row)
            elif self._take_token(row, tokens[row.id], emissions.setdefault(row.gateway, _Emission()), now):
                ends += self._end(row, AttemptEnd.FINISHED)
        return [Emit(gateway, e.event()) for gateway, e in emissions.items() if e.attempts] + ends

    def fail_step(self, step: int) -> list[Command]:
        """The executor could not run it: its rows are lost."""
        self._finished_step = step
        commands: list[Command] = []
        for row in self._in_step.pop(step, ()):
            row.num_in_flight -= 1
            commands += self._end(row, AttemptEnd.STEP_FAILED)
        return commands

    # ── planning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def next_rows(self, max_rows: int, step: int, now: float) -> tuple[DecodeRows, list[Command]]:
        """Take up to `max_rows` rows into step number `step`, one token each; may preempt.

        Where there are more rows, those that have waited longest, then the oldest: none falls silent.
        """
        rows, commands = DecodeRows(), list[Command]()
        wanting = [row for row in self._rows.values() if row.wants_token]
        if len(wanting) > max_rows:
            wanting = sorted(wanting, key=lambda row: row.last_step)[:max_rows]
        for row in wanting:
            if row.end is not None:
                continue
            grown = grow(row, self._pool, self._config.block_size)
            while grown is None and not self._blocks_will_come():
                victim = next_victim(self._rows.values())
                assert victim is not None
                commands += self._end(victim, AttemptEnd.PREEMPTED)
                if victim is row:
                    break
                grown = grow(row, self._pool, self._config.block_size)
            if grown is not None and row.end is None:
                self._add(rows, row, grown, step, now)
        return rows, commands

    def take_left(self) -> tuple[AttemptId, ...]:
        """Rows that the executor may forget, once."""
        left, self._left = tuple(self._left), []
        return left

    def _add(self, rows: DecodeRows, row: DecodeRow, grown: tuple[int, ...], step: int, now: float) -> None:
        add_row(rows, row, grown, self._pool)
        row.last_step = step
        self._in_step.setdefault(step, []).append(row)
        if row.started_at is None:
            row.started_at = now

    def _blocks_will_come(self) -> bool:
        """Whether rows that are over wait only for a step to end: better to wait for their blocks than to preempt."""
        return any(row.end is not None for row in self._rows.values())

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _join(self, incoming: Incoming, now: float) -> None:
        offer, done = incoming.offer, incoming.done
        assert done is not None
        tokens = offer.request.token_ids + offer.log + pack_tokens((done.token_id,))
        table = incoming.table
        join = RowJoin(
            offer.attempt, tokens, done.num_tokens, offer.request.sampling, table, self._pool.generations(table)
        )
        timing = replace(
            done.timing,
            reserve_s=max(0.0, incoming.granted_at - incoming.done_at),
            handoff_s=now - max(incoming.granted_at, incoming.done_at),
        )
        self._rows[offer.attempt] = DecodeRow(
            offer.attempt,
            offer.request,
            offer.gateway,
            table,
            done.num_tokens,
            num_packed(offer.log) + 1,
            timing,
            now,
            offer.num_preemptions,
            join,
        )

    def _take_token(self, row: DecodeRow, token: int, emission: _Emission, now: float) -> FinishReason | None:
        emission.attempts.append(row.id)
        emission.indices.append(row.num_output)
        emission.token_ids.append(token)
        row.num_output += 1
        finish = finish_reason(token, row.num_output, row.request.sampling, self._config.eos_token_ids)
        emission.finishes.append(finish)
        emission.timings.append(self._timing(row, now) if finish else None)
        return finish

    def _timing(self, row: DecodeRow, now: float) -> Timing:
        assert row.started_at is not None
        return replace(row.timing, queue_decode_s=row.started_at - row.ready_at, decode_s=now - row.started_at)

    def _end(self, row: DecodeRow, end: AttemptEnd) -> list[Command]:
        if row.end is None:
            row.end = end
        return self._settle(row)

    def _settle(self, row: DecodeRow) -> list[Command]:
        """Give the blocks back and report, or wait in ENDING for the step that holds them."""
        assert row.end is not None
        if row.last_step > self._finished_step:
            if row.state is not DecodeState.ENDING:
                row.state = DecodeState.ENDING
                self._pool.quarantine(row.table)
            return []
        self._pool.free(row.table)
        del self._rows[row.id]
        self._left.append(row.id)
        return [Tell(SCHEDULER, AttemptFinished(row.id, self._config.node, row.end))]
