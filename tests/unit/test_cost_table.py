"""Cost tables: what is fitted, what lies between and beyond the measured points, and what a file may hold."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from cluster.costs import preemption_costs, read_table
from cluster.live.config import NodeSettings
from cluster.live.handshake import ClusterToken
from cluster.live.orders import HeadPlace, NodeOrder
from cluster.simulated.truth_table import TableTruth
from core.costs import StepWork
from core.errors import ConfigError
from core.mix import mix_of
from core.timers import Timers
from engine.cost_belief import node_costs
from engine.cost_fit import Curve, Surface, fit
from engine.cost_table import CopySample, CostTable, StepSample, TableFacts

FACTS = TableFacts("a-model", "d1", "float32", "cpu", "none", 1, 16, "2026-01-01T00:00:00+00:00", {"processor": "x"})
TOKENS, PREFIXES, ROWS, CONTEXTS = (1, 16, 64, 256, 512), (0, 512, 1024), (1, 4, 16, 64), (32, 512, 1024)


def truth_s(tokens: float, prefix: float, rows: float, context: float) -> float:
    """A machine as regular as none is."""
    attended = tokens * (prefix + tokens / 2)
    return 0.002 + 0.0001 * (tokens + rows) + 3e-8 * attended + 2e-7 * rows * context


def sample(tokens: int, prefix: int, rows: int, context: int, factor: float = 1.0) -> StepSample:
    seconds = truth_s(tokens, prefix, rows, context) * factor
    return StepSample(tokens, prefix, rows, context, (seconds * 0.9, seconds, seconds * 3))


def table(*, noisy: bool = False) -> CostTable:
    factors = iter([1.0, 1.3, 0.7, 1.1, 0.9] * 20)
    steps = [
        sample(*point, next(factors) if noisy else 1.0)
        for point in (
            *((tokens, prefix, 0, 0) for tokens, prefix in product(TOKENS, PREFIXES)),
            *((0, 0, rows, context) for rows, context in product(ROWS, CONTEXTS)),
        )
    ]
    copies = [CopySample(n, (0.001 * n, 0.001 * n), (0.003 * n, 0.003 * n)) for n in (4, 16)]
    return CostTable.of(FACTS, steps, copies, [sample(100, 0, 8, 300)])


@pytest.mark.parametrize("point", [(512, 0, 0, 0), (64, 1024, 0, 0), (0, 0, 16, 512), (0, 0, 64, 1024)])
def test_at_a_measured_point_the_table_says_what_was_measured(point: tuple[int, int, int, int]) -> None:
    assert table().step_s(*point) == pytest.approx(truth_s(*point))


@pytest.mark.parametrize("point", [(100, 0, 0, 0), (300, 700, 0, 0), (0, 0, 10, 300), (128, 256, 8, 600)])
def test_between_measured_points_it_is_close(point: tuple[int, int, int, int]) -> None:
    assert table().step_s(*point) == pytest.approx(truth_s(*point), rel=0.06)


@pytest.mark.parametrize("point", [(512, 4096, 0, 0), (0, 0, 128, 1024), (0, 0, 64, 8192), (512, 2048, 128, 4096)])
def test_beyond_the_grid_it_goes_on_in_proportion(point: tuple[int, int, int, int]) -> None:
    assert table().step_s(*point) == pytest.approx(truth_s(*point), rel=0.1)


def test_more_work_never_costs_less_even_where_the_measurements_say_so() -> None:
    noisy = table(noisy=True)
    axes = ((0, 1, 40, 512, 2000), (0, 300, 1024, 9000), (0, 1, 5, 64, 200), (0, 32, 600, 5000))
    for point in product(*axes):
        for axis, values in enumerate(axes):
            larger = [value for value in values if value > point[axis]]
            if larger:
                more = (*point[:axis], larger[0], *point[axis + 1 :])
                assert noisy.step_s(*more) >= noisy.step_s(*point) - 1e-12, (point, more)


def test_nothing_to_do_costs_nothing() -> None:
    assert table().step_s(0, 0, 0, 0) == 0.0
    assert table().step_s(0, 4096, 0, 4096) == 0.0


def test_the_fit_finds_the_costs_that_the_samples_were_made_with() -> None:
    costs = table().recompute()
    assert costs.prefill_s_per_token == pytest.approx(0.0001)
    assert costs.prefill_s_per_token_context == pytest.approx(3e-8)
    assert costs.fixed_s == pytest.approx(0.002)
    assert costs.copy_s_per_block == pytest.approx(0.002), "the mean of out and back"


def test_a_node_and_the_simulator_take_their_costs_from_it() -> None:
    assert preemption_costs(table().recompute()).recompute_s(1000) == pytest.approx(0.002 + 0.1 + 3e-8 * 5e5, rel=0.01)
    simulated = TableTruth(table())
    assert simulated.step_s([(64, 0)], 0, 0) == pytest.approx(truth_s(64, 0, 0, 0), rel=0.05)
    assert simulated.step_s([], 16, 16 * 512) == pytest.approx(truth_s(0, 0, 16, 512), rel=0.05)
    assert simulated.belief().per_row_context_s > 0


def test_its_error_is_that_on_steps_it_was_not_made_from() -> None:
    found = table().error()
    assert found is not None
    assert 0 < found.median <= found.worst < 0.06
    assert replace(table(), checks=()).error() is None


def test_a_file_gives_back_the_same_table(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    table().write(path)
    assert CostTable.read(path) == table()
    assert json.loads(path.read_text())["facts"]["model"] == "a-model"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "something else"}, "is not a cost table"),
        ({"version": 99}, "has version 99"),
        ({"copies": []}, "needs samples of copies"),
        ({"steps": [{"prefill_tokens": 1}]}, "is damaged"),
        (
            {"checks": [{**vars_of, "seconds": [-1.0]} for vars_of in ({"prefill_tokens": 1, "prefill_context": 0},)]},
            "is",
        ),
        ({"facts": {}}, "is damaged"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = tmp_path / "costs.json"
    table().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=says):
        CostTable.read(path)


def test_a_file_that_is_not_there_or_not_json_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read"):
        CostTable.read(tmp_path / "nowhere.json")
    (tmp_path / "text.json").write_text("not json")
    with pytest.raises(ConfigError, match=r"text\.json cannot be read"):
        CostTable.read(tmp_path / "text.json")


def test_a_table_of_another_model_or_setting_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    table().write(path)
    node = NodeSettings(tmp_path)
    assert read_table(path, node, "d1").recompute().copy_s_per_block == pytest.approx(0.002)
    with pytest.raises(ConfigError, match="weights are not those"):
        read_table(path, node, "d2")
    with pytest.raises(ConfigError) as caught:
        read_table(path, replace(node, num_threads=2, block_size=32), "d1")
    assert [word for word in ("--num-threads 1, not 2", "--block-size 16, not 32") if word in str(caught.value)] != []
    assert len(caught.value.problems) == 2


def test_costs_travel_in_a_nodes_order(tmp_path: Path) -> None:
    costs = preemption_costs(table().recompute())
    for given in (costs, None):
        order = NodeOrder(
            "decode-0",
            mix_of("decode", 0, 8),
            NodeSettings(tmp_path, num_kv_blocks=8, costs=given),
            Timers(),
            HeadPlace("head@1", "127.0.0.1:1", 1),
            ClusterToken(b"0" * 32),
        )
        assert NodeOrder.unpack(order.pack()) == order


def test_a_fit_has_no_negative_part() -> None:
    terms = [(1.0, float(n)) for n in (1, 2, 3, 4)]
    assert fit(terms, [4.0, 3.0, 2.0, 1.0])[1] == 0.0
    assert fit(terms, [3.0, 5.0, 7.0, 9.0]) == pytest.approx((1.0, 2.0))


def test_what_the_samples_do_not_determine_is_zero() -> None:
    assert fit([(1.0, 0.0)], [2.0]) == pytest.approx((2.0, 0.0))


def test_a_curve_of_one_point_is_flat_and_a_surface_of_none_is_zero() -> None:
    assert Curve.through({8.0: 2.0}).at(1000) == 2.0
    assert Surface.through({}).at(5, 5) == 0.0


def test_a_scheduler_predicts_with_the_line_through_its_steps_of_one_kind() -> None:
    costs, known = node_costs(table()), table()
    for tokens, before in ((64, 0), (256, 512)):
        work = StepWork(1, 0, tokens, tokens * (before + tokens / 2))
        assert costs.seconds(work) == pytest.approx(known.step_s(tokens, before, 0, 0), rel=0.1)
    work = StepWork(0, 1, 0, 0.0, 8, 8 * 256)
    assert costs.seconds(work) == pytest.approx(known.step_s(0, 0, 8, 256), rel=0.15)
