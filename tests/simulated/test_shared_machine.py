"""Nodes that share a machine, and the shell around an executor: both make steps longer than a table says."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cost_sources import CostAsked, node_kind
from cluster.simulated.fleet import FleetFault, FleetNode, FleetRun, run_fleet
from cluster.simulated.truth import StraightTruth
from cluster.simulated.truth_hosted import HostedTruth
from core.costs import NodeCosts
from engine.cost_table import CopySample, CostTable, StepSample, TableFacts
from tests.simulated.fleets import COSTS, LAX, at_once, fleet, node

DOUBLE = StraightTruth(NodeCosts(0.012, 0.010, 4e-5, 4e-10, 4e-5, 6e-8))
"""Twice `COSTS`."""


def crowded(name: str) -> FleetNode:
    """A mixed node whose steps take twice as long while another one runs a step."""
    return replace(node(name, "mixed"), beside=DOUBLE)


def busy_s(run: FleetRun) -> float:
    """Of all nodes."""
    return sum(use.prefill_busy_s + use.decode_busy_s for use in run.nodes)


def test_steps_take_longer_only_while_a_neighbour_runs_one() -> None:
    alone = busy_s(run_fleet(fleet(crowded("m0")), at_once([(500, 50)]), LAX))
    assert alone == pytest.approx(busy_s(run_fleet(fleet(node("m0", "mixed")), at_once([(500, 50)]), LAX)))
    both = busy_s(run_fleet(fleet(crowded("m0"), crowded("m1")), at_once([(500, 50), (500, 50)]), LAX))
    assert 3.9 * alone < both <= 4 * alone, "only the very first step, and the last one, have no neighbour"


def test_a_neighbour_that_is_lost_is_busy_no_more() -> None:
    lost = [FleetFault(0.05, "m1", "lost")]
    run = run_fleet(fleet(crowded("m0"), crowded("m1")), at_once([(500, 400), (500, 400)]), LAX, faults=lost)
    alone = run_fleet(fleet(node("m0", "mixed")), at_once([(500, 400), (500, 400)]), LAX)
    assert busy_s(run) < 1.2 * busy_s(alone)


def test_a_shell_adds_to_every_step_and_for_every_row() -> None:
    truth = HostedTruth(StraightTruth(COSTS), per_step_s=0.001, per_row_s=0.0001)
    bare = StraightTruth(COSTS)
    assert truth.step_s((), 4, 1000) == pytest.approx(bare.step_s((), 4, 1000) + 0.0014)
    assert truth.step_s([(100, 0)], 2, 500) == pytest.approx(bare.step_s([(100, 0)], 2, 500) + 0.0013)
    assert truth.belief() == COSTS


def test_a_node_that_has_half_a_core_takes_twice_as_long_and_may_be_told_of_otherwise() -> None:
    truth = HostedTruth(StraightTruth(COSTS), per_step_s=0.001, core_share=0.5, told=DOUBLE.costs)
    assert truth.step_s((), 4, 1000) == pytest.approx(2 * (StraightTruth(COSTS).step_s((), 4, 1000) + 0.001))
    assert truth.belief() == DOUBLE.costs


def table(folder: Path, name: str, factor: float) -> Path:
    """A cost table whose steps take so many times what the others' do."""
    facts = TableFacts("tiny", "", "float32", "cpu", "none", 1, 16, "", {})
    steps = [StepSample(tokens, 0, 0, 0, (factor * tokens * 1e-4,)) for tokens in (1, 100)]
    steps += [StepSample(0, 0, rows, 32, (factor * (0.005 + rows * 1e-4),)) for rows in (1, 8)]
    path = folder / name
    CostTable.of(facts, steps, [CopySample(1, (1e-4,), (1e-4,))]).write(path)
    return path


def test_a_kind_of_node_has_both_tables_with_the_shells_part(tmp_path: Path) -> None:
    asked = CostAsked(
        table=table(tmp_path, "alone", 1.0), beside=table(tmp_path, "beside", 1.5), step_overhead_s=0.001, kv_tokens=999
    )
    kind = node_kind(asked, 1)
    assert kind.truth.step_s((), 8, 256) == pytest.approx(0.0058 + 0.001)
    assert kind.beside is not None and kind.beside.step_s((), 8, 256) == pytest.approx(1.5 * 0.0058 + 0.001)
