"""What each node should accept: today only that every phase is covered, whoever dies."""

from collections.abc import Iterable
from dataclasses import replace

from core.mix import Mix
from scheduler.view import NodeView

WIDENED_PREFILL_TOKENS = 512
"""Chunk budget of a decode node that has to prefill as well: vLLM's default chunk on small devices."""

WIDENED_DECODE_ROWS = 64
"""Rows of a prefill node that has to decode as well."""


def next_mixes(nodes: Iterable[NodeView]) -> list[tuple[NodeView, Mix]]:
    """Mixes to tell, with the next epoch: the base mixes where those cover both phases, else every node does both."""
    views = list(nodes)
    covered = any(v.base_mix.accepts_prefill for v in views) and any(v.base_mix.accepts_decode for v in views)
    changes = []
    for view in views:
        wanted = view.base_mix if covered else widened(view.base_mix)
        if replace(wanted, epoch=view.mix.epoch) != view.mix:
            changes.append((view, replace(wanted, epoch=view.mix.epoch + 1)))
    return changes


def widened(mix: Mix) -> Mix:
    """The same node doing both phases. An operator's closed node stays closed."""
    if mix.role == "closed":
        return mix
    return Mix(
        True,
        True,
        min(mix.prefill_tokens_per_step, WIDENED_PREFILL_TOKENS) or WIDENED_PREFILL_TOKENS,
        mix.max_decode_rows or WIDENED_DECODE_ROWS,
        mix.epoch,
    )
