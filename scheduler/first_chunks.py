"""Chunks for a start, when nothing is known of the load but what its requests are promised."""

from collections.abc import Sequence
from dataclasses import replace

from core.ids import NodeId
from core.mix import Mix
from scheduler.closed_forms import ROWS_BESIDE, NodeAbility
from scheduler.layouts import MIN_CHUNK, PlanNode

BEARABLE = 0.8
"""Of its TPOT, a row bears so long a step: the rows' own time and what chunks attend to come on top."""


def bearable_chunk(node: NodeAbility, chunk: int, tpot_s: float) -> int:
    """The chunk, halved until rows bear a step with it; itself where no half of it does: chunks are not what helps."""
    size, costs = chunk, node.costs
    while size >= MIN_CHUNK:
        if costs.mixed_s(size * costs.token_s((1.0 + ROWS_BESIDE) * size), 0.0) <= BEARABLE * tpot_s:
            return size
        size //= 2
    return chunk


def first_chunks(nodes: Sequence[PlanNode], tpot_s: float) -> tuple[tuple[NodeId, Mix], ...]:
    """The mixed nodes whose chunks no row would bear, with chunks that they do."""
    changes = []
    for node in nodes:
        mix = node.mix
        chunk = bearable_chunk(node.ability, mix.prefill_tokens_per_step, tpot_s)
        if node.is_free and mix.role == "mixed" and chunk < mix.prefill_tokens_per_step:
            changes.append((node.node, replace(mix, prefill_tokens_per_step=chunk)))
    return tuple(changes)
