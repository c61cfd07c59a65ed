"""How far the next step computes its prompts, in chunks."""

from dataclasses import dataclass, field

from core.ids import AttemptId
from core.step import RowJoin
from engine.blocks import BlockPool
from prefill_worker.attempt import Prefill


@dataclass(slots=True)
class PrefillRows:
    """The prefill part of a step plan, in columns; `num_pairs` as `core.costs.StepWork` counts them."""

    attempts: list[AttemptId] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    joined: list[RowJoin] = field(default_factory=list)
    seal: list[int] = field(default_factory=list)
    num_pairs: float = 0.0


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


def join_of(prefill: Prefill, pool: BlockPool) -> RowJoin:
    """What the executor must be told of an attempt before its first chunk."""
    request = prefill.asked.request
    return RowJoin(
        prefill.id,
        request.token_ids + prefill.asked.log,
        prefill.num_computed,
        request.sampling,
        prefill.table,
        pool.generations(prefill.table),
        request.prompt.num_tokens,
        prefill.source[0] if prefill.source else None,
    )
