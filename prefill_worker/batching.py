"""Which prompts the next step computes, and how far: chunked prefill, first come first served."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from core.events import AttemptEnd, Submitted
from core.ids import AttemptId
from core.kv import num_blocks
from core.lifecycle import BlockState, PrefillState
from core.request import num_packed
from core.step import RowJoin
from engine.blocks import BlockPool


@dataclass(slots=True)
class Prefill:
    """One attempt at the prefill machine. `num_*` count tokens or blocks of its own table, from the start.

    computed: results are in. planned: computed, or in a step in flight. sealed, offered, to_seal: blocks.
    `num_lacking`: so many available blocks were too few. `end` is what will be reported once nothing holds its blocks;
    None while it is wanted.
    """

    asked: Submitted
    submitted_at: float
    num_tokens: int
    state: PrefillState = PrefillState.QUEUED
    table: tuple[int, ...] = ()
    num_computed: int = 0
    num_planned: int = 0
    num_to_seal: int = 0
    num_sealed: int = 0
    num_offered: int = 0
    last_step: int = -1
    started_at: float = 0.0
    num_lacking: int = -1
    end: AttemptEnd | None = None

    @property
    def id(self) -> AttemptId:
        """Its name."""
        return self.asked.attempt

    @property
    def is_done(self) -> bool:
        """Whether the whole prompt has been computed."""
        return self.num_computed == self.num_tokens


@dataclass(slots=True)
class PrefillRows:
    """The prefill part of a step plan, in columns."""

    attempts: list[AttemptId] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    joined: list[RowJoin] = field(default_factory=list)
    seal: list[int] = field(default_factory=list)


def prefill_of(asked: Submitted, now: float) -> Prefill:
    """A new attempt."""
    return Prefill(asked, now, asked.request.prompt.num_tokens + num_packed(asked.log))


def allocate(prefill: Prefill, pool: BlockPool, block_size: int) -> bool:
    """Get all blocks of the prompt, cached ones first; False, and nothing held, when they are not all there.

    At least one token is left to compute: its logits are wanted.
    """
    if pool.num_available <= prefill.num_lacking:
        return False
    keys = prefill.asked.request.prompt.block_keys[: (prefill.num_tokens - 1) // block_size]
    shared = pool.share(keys)
    new = pool.allocate(num_blocks(prefill.num_tokens, block_size) - len(shared), BlockState.FILLING)
    if new is None:
        pool.free(shared)
        prefill.num_lacking = pool.num_available
        return False
    prefill.table = shared + new
    prefill.num_sealed = prefill.num_to_seal = len(shared)
    prefill.num_computed = prefill.num_planned = len(shared) * block_size
    return True


def plan_chunk(prefill: Prefill, num_tokens: int, block_size: int, is_kept: bool) -> tuple[int, ...]:
    """Advance the plan by one chunk; returns the blocks that it completes.

    The last block, if not full, is complete only when no decode row of this node (`is_kept`) will fill it up.
    """
    prefill.num_planned += num_tokens
    full = prefill.num_planned // block_size
    if prefill.num_planned == prefill.num_tokens and not is_kept:
        full = len(prefill.table)
    blocks = prefill.table[prefill.num_to_seal : full]
    prefill.num_to_seal = full
    return blocks


def unplanned(prefills: Iterable[Prefill]) -> list[Prefill]:
    """Attempts that compute and have tokens left to plan, oldest first."""
    return [
        prefill
        for prefill in prefills
        if prefill.state is PrefillState.PREFILLING and prefill.end is None and prefill.num_planned < prefill.num_tokens
    ]
