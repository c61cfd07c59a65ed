"""A fleet that grows and shrinks: what its nodes cost, and that no request is lost by it."""

import pytest

from cluster.cost_sources import CostAsked, node_kind
from cluster.fleet_plan import Arm, Recipe
from cluster.simulated.fleet import FleetSupply
from cluster.simulated.fleet_world import Circumstances, FleetWorld, Load
from cluster.simulated.shared_links import FleetLinks
from cluster.simulation import Elastic, simulate
from cluster.workload.spec import workload_of
from core.decisions import CapacityTarget, DecisionKind
from core.errors import ConfigError
from core.goodput import Outcome
from core.ids import OPERATOR, SCHEDULER, NodeId
from core.request import SLO
from scheduler.capacity import CapacityConfig
from scheduler.policies.build import policy_of
from scheduler.scheduler import Scheduler
from tests.simulated.fleets import LAX, fleet, node, varied

HILL = ("lengths,in=1500,out=200,rate=2,seconds=30", "lengths,in=1500,out=200,rate=40,seconds=60,start=30")
CAPACITY = CapacityConfig(min_nodes=1, max_nodes=6, interval_s=2.0, down_s=20.0)


def world_of(targets: tuple[tuple[float, CapacityTarget], ...], start_s: float) -> FleetWorld:
    """One mixed node that is there and two that may be started; targets at their moments, then run to the end."""
    whole = fleet(*(node(f"m{number}", "mixed") for number in range(3)))
    scheduler = Scheduler(whole.scheduler, policy_of(whole.policy, whole.scheduler))
    circumstances = Circumstances(supply=FleetSupply(("m1", "m2"), start_s))
    world = FleetWorld(whole, scheduler, Load(varied(60), LAX, 600.0), circumstances, 0)
    for at_s, target in targets:
        world.loop.at(at_s, world.send, SCHEDULER, OPERATOR, target)
    world.run()
    assert all(client.outcome is Outcome.FINISHED for client in world.door.clients.values())
    return world


def test_a_node_that_starts_is_counted_from_the_moment_it_was_asked_for() -> None:
    world = world_of(((1.0, CapacityTarget(2, ())),), start_s=1.5)
    assert world.starting_s == {"m1": pytest.approx(1.5)}
    assert world.hosts[NodeId("m1@0")].use.began_at == pytest.approx(2.5, abs=0.01)


def test_of_nodes_that_are_starting_the_last_one_is_given_up_when_fewer_are_wanted() -> None:
    world = world_of(((1.0, CapacityTarget(3, ())), (2.0, CapacityTarget(2, ()))), start_s=3.0)
    assert NodeId("m1@0") in world.hosts and NodeId("m2@0") not in world.hosts
    assert world.starting_s == {"m1": pytest.approx(3.0), "m2": pytest.approx(1.0, abs=0.01)}


def test_a_node_given_up_while_starting_can_be_asked_for_again() -> None:
    targets = ((1.0, CapacityTarget(2, ())), (2.0, CapacityTarget(1, ())), (3.0, CapacityTarget(2, ())))
    world = world_of(targets, start_s=2.0)
    assert world.hosts[NodeId("m1@0")].use.began_at == pytest.approx(5.0, abs=0.01)
    assert world.starting_s == {"m1": pytest.approx(3.0, abs=0.01)}


def recipe() -> Recipe:
    """Nodes of Llama-3 8B on an H100."""
    kind = node_kind(CostAsked(gpu="H100", shape="llama-3-8b", block_size=256), 1)
    return Recipe(kind, FleetLinks(25e9), max_model_len=2048)


def test_an_elastic_fleet_follows_the_load_and_loses_nothing() -> None:
    workload = workload_of((*HILL, "lengths,in=1500,out=200,rate=2,seconds=60,start=90"), 0).workload
    elastic = Elastic(CAPACITY, num_first=1, start_s=5.0)
    run = simulate(recipe(), Arm(0, 0, 6, adapts=True), workload, SLO(2.0, 0.05), 0, elastic)
    told = [each for each in run.fleet.decisions if each.kind is DecisionKind.CAPACITY]
    assert len(told) >= 2, "up the hill and down again"
    assert run.fleet.num_lost == 0 and "failed" not in {each.outcome.value for each in run.load.records}
    assert 1.0 < run.load.num_nodes < 6.0
    numbers = [number for _, number in run.fleet.sizes]
    assert numbers[0] == 1 and max(numbers) > numbers[-1], "fewer at the end than at the top"
    ended = [use for use in run.fleet.nodes if 0 < use.alive_s < run.load.duration_s - 60]
    assert ended, "a node was there for a part of the run only"


def test_only_a_fleet_with_a_controller_can_be_elastic() -> None:
    with pytest.raises(ConfigError, match="only an adaptive fleet"):
        simulate(recipe(), Arm(0, 0, 2), workload_of(HILL, 0).workload, LAX, 0, Elastic(CAPACITY, 1))
