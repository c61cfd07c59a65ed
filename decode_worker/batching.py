"""Rows that decode: one token each per step, as many as the mix lets run, oldest first."""

from dataclasses import dataclass, field

from core.events import AttemptEnd
from core.ids import AttemptId, GatewayId
from core.kv import num_blocks
from core.lifecycle import BlockState, DecodeState
from core.request import Request
from core.stats import Timing
from core.step import RowGrowth, RowJoin
from engine.blocks import BlockPool


@dataclass(slots=True)
class DecodeRow:
    """One running attempt.

    `num_context` tokens have KV once all planned steps are over; `num_output` tokens of the request's answer are known;
    `num_in_flight` more are being sampled. `join` is what the executor must be told first; None once it was.
    """

    id: AttemptId
    request: Request
    gateway: GatewayId
    table: tuple[int, ...]
    num_context: int
    num_output: int
    timing: Timing
    ready_at: float
    num_preemptions: int = 0
    join: RowJoin | None = None
    state: DecodeState = DecodeState.DECODING
    num_in_flight: int = 0
    last_step: int = -1
    started_at: float | None = None
    end: AttemptEnd | None = None

    @property
    def wants_token(self) -> bool:
        """Whether one more step may be planned for it."""
        planned = self.num_output + self.num_in_flight
        return self.end is None and planned < self.request.sampling.max_tokens


@dataclass(slots=True)
class DecodeRows:
    """The decode part of a step plan, in columns; every row has one token."""

    attempts: list[AttemptId] = field(default_factory=list)
    joined: list[RowJoin] = field(default_factory=list)
    grown: list[RowGrowth] = field(default_factory=list)


def grow(row: DecodeRow, pool: BlockPool, block_size: int) -> tuple[int, ...] | None:
    """Blocks for one more token of context, appended to the table: mostly none; None when the pool is full."""
    missing = num_blocks(row.num_context + 1, block_size) - len(row.table)
    if missing <= 0:
        return ()
    blocks = pool.allocate(missing, BlockState.IN_USE)
    if blocks is not None:
        row.table += blocks
    return blocks


def add_row(rows: DecodeRows, row: DecodeRow, grown: tuple[int, ...], pool: BlockPool) -> None:
    """Put a row into the plan; a new one brings its whole table."""
    rows.attempts.append(row.id)
    generations = pool.generations(grown)
    if row.join is not None:
        join = row.join
        all_generations = join.generations + generations
        rows.joined.append(
            RowJoin(join.attempt, join.token_ids, join.num_computed, join.sampling, row.table, all_generations)
        )
        row.join = None
    elif grown:
        rows.grown.append(RowGrowth(row.id, grown, generations))
    row.num_context += 1
    row.num_in_flight += 1
