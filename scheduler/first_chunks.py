"""Chunks for a start, when nothing is known of the load but what its requests are promised."""

from collections.abc import Sequence
from dataclasses import replace

from core.ids import NodeId
from core.mix import Mix
from scheduler.closed_forms import ROWS_BESIDE, NodeAbility
from scheduler.layouts import MIN_CHUNK, PlanNode

BEARABLE = 0.8
"""Of its TPOT, a row bears so long a step: the rows' own time and what chunks attend to come on top."""

LITTLE = 0.25
"""Of a step, so much may be its fixed price where no chunk is borne anyway."""


def bearable_chunk(node: NodeAbility, chunk: int, tpot_s: float) -> int:
    """The chunk, halved until rows bear a step with it; where they bear none, halved while the steps' fixed price is
    little of them: the sooner a prompt is out of their way the better."""
    sizes = [chunk]
    while sizes[-1] // 2 >= MIN_CHUNK:
        sizes.append(sizes[-1] // 2)
    steps_s = [node.costs.mixed_s(n * node.costs.token_s((1.0 + ROWS_BESIDE) * n), 0.0) for n in sizes]
    borne = [n for n, step_s in zip(sizes, steps_s, strict=True) if step_s <= BEARABLE * tpot_s]
    paid = [n for n, step_s in zip(sizes, steps_s, strict=True) if node.costs.mixed_fixed_s <= LITTLE * step_s]
    return borne[0] if borne else min(paid, default=chunk)


def first_chunks(nodes: Sequence[PlanNode], tpot_s: float) -> tuple[tuple[NodeId, Mix], ...]:
    """The mixed nodes whose chunks no row would bear, with chunks that they do."""
    changes = []
    for node in nodes:
        mix = node.mix
        chunk = bearable_chunk(node.ability, mix.prefill_tokens_per_step, tpot_s)
        if node.is_free and mix.role == "mixed" and chunk < mix.prefill_tokens_per_step:
            changes.append((node.node, replace(mix, prefill_tokens_per_step=chunk)))
    return tuple(changes)
