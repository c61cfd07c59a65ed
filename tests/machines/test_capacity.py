"""How many nodes there should be: up at once, down slowly, and who should go."""

from core.decisions import DecisionKind
from core.request import SLO
from scheduler.capacity import CapacityConfig
from scheduler.controller import ControllerConfig
from tests.machines.controlled import Bench, Phase

SIZES = CapacityConfig(min_nodes=2, max_nodes=12, interval_s=5.0, down_s=60.0)
LITTLE, MUCH = Phase(120, 4, 2000, 100), Phase(30, 60, 2000, 100)


def bench(*roles: str, sizes: CapacityConfig = SIZES) -> Bench:
    """Nodes with a controller that tells how many there should be."""
    return Bench(ControllerConfig(capacity=sizes), roles, slo=SLO(1.0, 0.01))


def test_more_load_asks_for_more_nodes_within_seconds() -> None:
    found = bench("mixed", "mixed", "mixed").run(Phase(20, 10, 2000, 100))
    assert found.targets == []
    found.run(MUCH)
    assert found.targets[0].num_nodes > 3
    assert found.targets[0].remove == ()
    assert len(found.targets) <= 3
    decision = found.of_kind(DecisionKind.CAPACITY)[0]
    assert decision.at < 20 + 15
    assert decision.fact("needed_nodes") == found.targets[0].num_nodes


def test_less_load_names_nodes_to_go_only_after_a_long_time() -> None:
    found = bench(*["mixed"] * 6).run(LITTLE)
    assert [target.num_nodes for target in found.targets] == [2]
    assert len(found.targets[0].remove) == 4
    assert set(found.targets[0].remove) < set(found.scheduler.view.nodes)
    assert found.of_kind(DecisionKind.CAPACITY)[0].at >= SIZES.down_s


def test_who_is_told_to_go_leaves_both_phases_covered() -> None:
    sizes = CapacityConfig(min_nodes=2, max_nodes=12, interval_s=5.0, down_s=30.0)
    found = bench("prefill", "decode", "decode", "decode", sizes=sizes).run(Phase(60, 1, 500, 50))
    left = {n: v.base_mix for n, v in found.scheduler.view.nodes.items() if n not in found.targets[-1].remove}
    assert any(mix.accepts_prefill for mix in left.values())
    assert any(mix.accepts_decode for mix in left.values())


def test_a_peak_within_the_time_keeps_the_nodes() -> None:
    found = bench(*["mixed"] * 6)
    for _ in range(3):
        found.run(Phase(40, 2, 2000, 100), Phase(16, 40, 2000, 100))
    assert min((target.num_nodes for target in found.targets), default=6) >= 3  # two are enough between the peaks


def test_prompts_that_no_node_computes_in_time_do_not_ask_for_all_nodes() -> None:
    hopeless = bench("mixed", "mixed", "mixed").run(Phase(60, 2, 100_000, 100))
    assert all(target.num_nodes < SIZES.max_nodes for target in hopeless.targets)
