"""What a fleet owes to every request, whatever becomes of its nodes."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from cluster.simulated.fleet import FleetFault, FleetOverride, FleetPlanner, FleetRun, FleetSupply, run_fleet
from cluster.simulated.fleet_world import Circumstances, FleetWorld, Load
from cluster.workload.items import WorkItem, Workload
from core.costs import NodeCosts, StepWork
from core.decisions import CapacityTarget
from core.errors import ConfigError
from core.goodput import Outcome
from core.ids import OPERATOR, PLANNER, SCHEDULER, NodeId
from core.mix import mix_of
from core.whatif import WhatIfAnswered, WhatIfAsked
from scheduler.policies.build import POLICY_NAMES, policy_of
from scheduler.scheduler import Scheduler
from tests.simulated.fleets import LAX, at_once, fleet, node, pairs, poisson, varied

LOSSES = (FleetFault(1.0, "d0", "lost", 2.0), FleetFault(2.5, "p0", "lost"), FleetFault(4.0, "d1", "lost", 0.5))


def digest(run: FleetRun) -> str:
    """All that came out."""
    return hashlib.sha256(repr(run).encode()).hexdigest()


def lossy(seed: int = 3) -> FleetRun:
    """A run in which much happens."""
    return run_fleet(fleet(*pairs(2, 2)), varied(60), LAX, seed=seed, faults=LOSSES)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_request_gets_its_whole_answer(policy: str) -> None:
    run = run_fleet(fleet(*pairs(2, 2), policy=policy), varied(40), LAX)
    assert [record.num_tokens for record in run.records] == [item.output_tokens for item in varied(40).items]
    assert {record.outcome for record in run.records} == {Outcome.FINISHED}
    assert run.num_lost == 0 and run.errors == ()
    assert sum(use.num_cached_tokens for use in run.nodes) == sum(record.num_cached_tokens for record in run.records)


def test_nodes_that_are_lost_lose_no_request() -> None:
    run = lossy()
    assert {record.outcome for record in run.records} == {Outcome.FINISHED}
    assert [record.num_tokens for record in run.records] == [item.output_tokens for item in varied(60).items]
    alive_s = {use.name: use.alive_s for use in run.nodes}
    assert alive_s["p0"] == pytest.approx(2.5) and alive_s["d0"] == pytest.approx(run.duration_s - 2.0)


def test_all_blocks_are_free_or_cached_in_the_end() -> None:
    whole = fleet(*pairs(2, 2, num_blocks=120))
    circumstances = Circumstances(LOSSES)
    scheduler = Scheduler(whole.scheduler, policy_of(whole.policy, whole.scheduler))
    world = FleetWorld(whole, scheduler, Load(varied(60), LAX, 600.0), circumstances, 0)
    world.run()
    world.settle()
    scheduler.check()
    for host in world.hosts.values():
        if not host.is_dead:
            host.machine.check()
            counts = host.machine.pool.counts()
            assert counts.free + counts.cached == counts.capacity
    assert world.place.peak_handoffs > 0 and not world.place.handoffs


def test_layouts_differ_in_time_and_not_in_tokens() -> None:
    apart = run_fleet(fleet(*pairs(1, 1)), varied(40), LAX)
    mixed = run_fleet(fleet(node("m0", "mixed"), node("m1", "mixed")), varied(40), LAX)
    assert [r.num_tokens for r in apart.records] == [r.num_tokens for r in mixed.records]
    assert [r.ttft_s for r in apart.records] != [r.ttft_s for r in mixed.records]
    assert mixed.peak_handoffs == 0 < apart.peak_handoffs


def test_prefixes_are_computed_once() -> None:
    items = tuple(WorkItem(2.0 * i, 1100, 4, block_ids=(7, 8, 100 + i)) for i in range(3))
    run = run_fleet(fleet(node("m", "mixed")), Workload("prefix", items), LAX)
    assert [record.num_cached_tokens for record in run.records] == [0, 1024, 1024]


def test_tenants_share_no_prefix() -> None:
    items = tuple(WorkItem(2.0 * i, 1100, 4, block_ids=(7, 8, 9), tenant=f"t{i}") for i in range(2))
    run = run_fleet(fleet(node("m", "mixed")), Workload("prefix", items), LAX)
    assert [record.num_cached_tokens for record in run.records] == [0, 0]


def test_steps_that_are_run_together_change_no_answer_and_no_time() -> None:
    costs = NodeCosts(0.006, 0.005, 2e-5, 0.0, 1e-5, 0.0)
    nodes = (node("p", "prefill", costs=costs), node("d0", "decode", costs=costs), node("d1", "decode", costs=costs))
    together = fleet(*nodes, policy="round_robin")
    runs = [run_fleet(each, varied(50), LAX) for each in (together, replace(together, may_repeat=False))]
    for column in ("num_tokens", "ttft_s", "last_token_s", "num_cached_tokens"):
        first, second = ([getattr(record, column) for record in run.records] for run in runs)
        assert first == pytest.approx(second, abs=1e-6), column
    assert [use.num_steps for use in runs[0].nodes] == [use.num_steps for use in runs[1].nodes]
    assert [use.decode_busy_s for use in runs[0].nodes] == pytest.approx([use.decode_busy_s for use in runs[1].nodes])


def test_the_work_of_steps_that_are_run_together_is_that_of_all() -> None:
    steps = [StepWork(num_decode_steps=1, num_rows=3, row_context=300 + 3 * i) for i in range(4)]
    together = StepWork()
    for step in steps:
        together = together.plus(step)
    assert steps[0].repeated(4) == together


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert digest(lossy()) == digest(lossy()) != digest(lossy(seed=4))


def test_bytes_do_not_depend_on_how_python_hashes() -> None:
    command = [sys.executable, "-c", "from tests.simulated.test_fleet import digest, lossy; print(digest(lossy()))"]
    found = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_what_the_model_cannot_take_is_refused_at_the_door() -> None:
    run = run_fleet(fleet(node("m", "mixed")), at_once([(32_000, 1000), (100, 10)]), LAX)
    assert [record.outcome for record in run.records] == [Outcome.REFUSED, Outcome.FINISHED]
    assert run.errors == (("too_long", 1),)


def test_what_takes_too_long_expires() -> None:
    run = run_fleet(fleet(node("m", "mixed")), poisson(50.0, 50, 3000, 10), LAX, deadline_s=2.0)
    outcomes = {record.outcome for record in run.records}
    assert outcomes == {Outcome.FINISHED, Outcome.EXPIRED}
    assert max(record.last_token_s or 0.0 for record in run.records) < 2.6


def test_a_node_that_comes_later_takes_its_share() -> None:
    nodes = (*pairs(1, 1), node("m", "mixed"))
    run = run_fleet(fleet(*nodes), varied(60), LAX, faults=[FleetFault(2.0, "m", "join")])
    (late,) = [use for use in run.nodes if use.name == "m"]
    assert late.num_steps > 0 and late.alive_s == pytest.approx(run.duration_s - 2.0)


def test_a_drained_node_is_left_by_all_its_rows() -> None:
    run = run_fleet(fleet(*pairs(1, 2)), varied(60), LAX, faults=[FleetFault(2.0, "d0", "drain")])
    assert {record.outcome for record in run.records} == {Outcome.FINISHED}
    assert [change.role for change in run.mix_changes if change.node == "d0"] == ["closed"]


def test_capacity_targets_are_carried_out_by_the_supply() -> None:
    whole = fleet(*pairs(1, 1), node("m", "mixed"))
    circumstances = Circumstances(supply=FleetSupply(absent=("m",), start_s=1.0))
    scheduler = Scheduler(whole.scheduler, policy_of(whole.policy, whole.scheduler))
    world = FleetWorld(whole, scheduler, Load(varied(60), LAX, 600.0), circumstances, 0)
    world.loop.at(1.0, world.send, SCHEDULER, OPERATOR, CapacityTarget(3, ()))
    world.loop.at(4.0, world.send, SCHEDULER, OPERATOR, CapacityTarget(2, (NodeId("m@0"),)))
    world.run()
    use = world.hosts[NodeId("m@0")].use
    assert use.began_at == pytest.approx(2.0) and use.num_steps > 0
    assert use.ended_at is not None and use.ended_at >= 4.0
    assert all(client.outcome is Outcome.FINISHED for client in world.door.clients.values())


def test_what_if_questions_are_answered_after_a_while() -> None:
    asked = WhatIfAsked(7, (), (), (), (), (), 0.0, LAX, 1e9)
    answered = WhatIfAnswered(7, (1.0,))
    whole, heard = fleet(node("m", "mixed")), list[float]()
    scheduler = Scheduler(whole.scheduler, policy_of(whole.policy, whole.scheduler))
    circumstances = Circumstances(planner=FleetPlanner(lambda _: answered, delay_s=0.5))
    world = FleetWorld(whole, scheduler, Load(varied(20), LAX, 600.0), circumstances, 0)
    world.loop.at(1.0, world.send, SCHEDULER, PLANNER, asked)
    world.loop.at(1.4, lambda: heard.append(scheduler.ratio.num_unknown))
    world.loop.at(1.6, lambda: heard.append(scheduler.ratio.num_unknown))
    world.run()
    assert heard == [0, 1]  # without a controller nobody has asked


def test_the_operators_mixes_are_told_at_their_time_and_going_back_is_a_reversal() -> None:
    mixes = [("decode", mix_of("mixed", 512, 64)), ("prefill", mix_of("decode", 0, 64))]
    overrides = [FleetOverride(float(at), (("d0", mix),)) for at, (_, mix) in enumerate(mixes, 2)]
    run = run_fleet(fleet(*pairs(1, 2)), varied(60), LAX, overrides=overrides)
    assert [(change.node, change.role) for change in run.mix_changes] == [("d0", "mixed"), ("d0", "decode")]
    assert [change.at_s for change in run.mix_changes] == pytest.approx([2.0, 3.0])
    assert run.num_reversals == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": (node("p", "prefill"),)}, "no node decodes"),
        ({"nodes": (node("d", "decode"),)}, "no node prefills"),
        ({"nodes": (node("m", "mixed"), node("m", "mixed"))}, "two nodes are called m"),
        ({"nodes": (node("m", "both"),)}, "'both' is no role"),
        ({"nodes": (node("m", "mixed", num_blocks=0),)}, "a pool of 0 blocks"),
        ({"nodes": (node("m", "mixed", budget=0),)}, "prefills 0 tokens"),
        ({"policy": "best"}, "policy 'best'"),
    ],
)
def test_a_fleet_that_cannot_be_is_one_clear_error(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_fleet(replace(fleet(node("m", "mixed")), **change), at_once([(10, 2)]), LAX)  # type: ignore[arg-type]


def test_faults_that_name_nothing_are_one_clear_error() -> None:
    with pytest.raises(ConfigError) as caught:
        run_fleet(fleet(node("m", "mixed")), at_once([(10, 2)]), LAX, faults=[FleetFault(1.0, "x", "burns")])
    assert len(caught.value.problems) == 2
