"""Rows that decode: one token each per step and drafts behind it, as many as the mix lets run, oldest first."""

from array import array
from dataclasses import dataclass, field, replace

from core.events import AttemptEnd
from core.ids import AttemptId, GatewayId, NodeId
from core.kv import num_blocks
from core.lifecycle import BlockState, DecodeState
from core.request import Request
from core.stats import Timing
from core.step import RowGrowth, RowJoin
from decode_worker.drafts import Drafting
from engine.blocks import BlockPool


@dataclass(slots=True, eq=False)
class DecodeRow:
    """One attempt that decodes, or will when its blocks are back.

    `num_context` tokens have KV once all planned steps are over, drafts not counted; `answer` are the known tokens of
    the request's answer, u32 each; `num_in_flight` more are being sampled, and `num_drafts` guessed on top of them.
    `join` is what the executor must be told first; None once it was. Of `table` it knows the first `num_told` blocks.
    `last_step` is the last one that may touch its blocks, `last_turn` the last in which it ran. `num_saved` blocks lie
    in host memory, or will when `last_step` is over. `num_sealed` of its full blocks have a digest that is
    true. `to`: where it goes while it is LEAVING.
    """

    id: AttemptId
    request: Request
    gateway: GatewayId
    table: tuple[int, ...]
    num_context: int
    answer: "array[int]"
    timing: Timing
    ready_at: float
    num_preemptions: int = 0
    join: RowJoin | None = None
    state: DecodeState = DecodeState.DECODING
    num_told: int = 0
    num_sealed: int = 0
    num_in_flight: int = 0
    num_drafts: int = 0
    last_step: int = -1
    last_turn: int = -1
    num_saved: int = 0
    num_saves: int = 0
    drafting: Drafting = field(default_factory=Drafting)
    started_at: float | None = None
    to: NodeId | None = None
    end: AttemptEnd | None = None

    @property
    def num_output(self) -> int:
        """Known tokens of the answer, those of earlier attempts among them."""
        return len(self.answer)

    @property
    def is_running(self) -> bool:
        """Whether it is wanted, and its KV is in the pool."""
        return self.end is None and self.state is DecodeState.DECODING

    @property
    def wants_token(self) -> bool:
        """Whether one more step may be planned for it; not while it is unknown where drafts will have brought it."""
        planned = self.num_output + self.num_in_flight
        return self.is_running and not self.num_drafts and planned < self.request.sampling.max_tokens


@dataclass(slots=True)
class DecodeRows:
    """The decode part of a step plan, in columns; every row has one token, and `max_drafts` behind it.

    `seal` are the blocks of rows that leave. `num_context` tokens are attended to, over all rows, before their own.
    `max_runs`: so often it may be run before a row needs a block, a turn or a decision.
    """

    attempts: list[AttemptId] = field(default_factory=list)
    max_drafts: list[int] = field(default_factory=list)
    joined: list[RowJoin] = field(default_factory=list)
    grown: list[RowGrowth] = field(default_factory=list)
    saved: list[AttemptId] = field(default_factory=list)
    restored: list[RowGrowth] = field(default_factory=list)
    seal: list[int] = field(default_factory=list)
    num_context: int = 0
    max_runs: int = 1

    @property
    def is_empty(self) -> bool:
        """Whether no step is needed for it."""
        return not (self.attempts or self.saved or self.restored or self.seal)


def grow(row: DecodeRow, pool: BlockPool, block_size: int) -> bool:
    """Blocks for one more token of context, appended to the table: mostly none; False when the pool is full."""
    missing = num_blocks(row.num_context + 1, block_size) - len(row.table)
    if missing > 0:
        blocks = pool.allocate(missing, BlockState.IN_USE)
        if blocks is None:
            return False
        row.table += blocks
    return True


def grow_for_drafts(row: DecodeRow, num_drafts: int, num_spare: int, pool: BlockPool, block_size: int) -> int:
    """Blocks for drafts behind the next token, at most `num_spare`; returns how many drafts there is room for."""
    missing = num_blocks(row.num_context + 1 + num_drafts, block_size) - len(row.table)
    blocks = pool.allocate(min(missing, num_spare), BlockState.IN_USE) if min(missing, num_spare) > 0 else ()
    row.table += blocks or ()
    return min(num_drafts, len(row.table) * block_size - row.num_context - 1)


def add_row(rows: DecodeRows, row: DecodeRow, num_drafts: int, step: int, pool: BlockPool) -> None:
    """Put a row into the plan of a step; a new one brings its whole table, others what was appended to it."""
    rows.attempts.append(row.id)
    rows.max_drafts.append(num_drafts)
    grown = row.table[row.num_told :]
    if row.join is not None:
        rows.joined.append(replace(row.join, block_ids=row.table, generations=pool.generations(row.table)))
        row.join = None
    elif grown:
        rows.grown.append(RowGrowth(row.id, grown, pool.generations(grown)))
    row.num_told = len(row.table)
    rows.num_context += row.num_context
    row.num_context += 1
    row.num_in_flight += 1
    row.num_drafts = num_drafts
    row.last_step = row.last_turn = step
