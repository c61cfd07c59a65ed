"""Chunks for a start."""

from dataclasses import replace

import pytest

from core.costs import NodeCosts
from core.ids import NodeId
from core.mix import mix_of
from scheduler.closed_forms import NodeAbility
from scheduler.first_chunks import bearable_chunk, first_chunks
from scheduler.layouts import PlanNode

ABILITY = NodeAbility(NodeCosts(0.002, 0.004, 2e-5, 0.0, 1e-5, 1e-8), 100_000, 64, 2048)


@pytest.mark.parametrize(
    ("tpot_s", "chunk"), [(1.0, 2048), (0.031, 1024), (0.02, 512), (0.0085, 128), (0.006, 32), (0.005, 1024)]
)
def test_a_chunk_is_halved_until_rows_bear_a_step_with_it_or_the_fixed_price_would_be_a_quarter(
    tpot_s: float, chunk: int
) -> None:
    assert bearable_chunk(ABILITY, 2048, tpot_s) == chunk


def test_what_hides_behind_the_fixed_price_is_bearable() -> None:
    hides = replace(ABILITY, costs=replace(ABILITY.costs, overlap=1.0))
    assert bearable_chunk(hides, 2048, 0.009) == 256


def test_only_mixed_nodes_that_may_be_changed_get_other_chunks() -> None:
    nodes = [
        PlanNode(NodeId(f"n{i}"), ABILITY, mix_of(role, 2048, 64), is_free)
        for i, (role, is_free) in enumerate([("mixed", True), ("mixed", False), ("prefill", True), ("decode", True)])
    ]
    assert [(node, mix.prefill_tokens_per_step) for node, mix in first_chunks(nodes, 0.02)] == [("n0", 512)]
