"""Who is turned away for what is predicted, with which words and times; and that turning away leaves no trace."""

from dataclasses import replace

import pytest

from core.commands import Command, Tell
from core.costs import StepWork
from core.errors import ErrorInfo
from core.events import NodeJoined, RequestArrived, RequestEnded, StatsReported, Submitted
from core.goodput import Outcome
from core.ids import GatewayId, NodeId
from core.request import SLO, Request
from scheduler.config import SchedulerConfig
from scheduler.policies.build import policy_of
from scheduler.scheduler import Scheduler
from tests.machines.seen import CONFIG, COSTS, node, put_rows, report, request_of, spec_of

G = GatewayId("g")
WORK = StepWork(2, 10, 1000, 1000 * 250.0, 100, 100_000)


def scheduler_of(
    *roles: str, config: SchedulerConfig = CONFIG, proven: bool = True, policy: str = "goodput", blocks: int = 4000
) -> Scheduler:
    """A scheduler that knows nodes `n0`, `n1`, …, whose prices were confirmed unless told otherwise."""
    scheduler = Scheduler(config, policy_of(policy, config))
    for i, role in enumerate(roles):
        scheduler.handle(NodeJoined(NodeId(f"n{i}"), spec_of(role, blocks=blocks)), 0.0)
        if proven:
            scheduler.handle(StatsReported(NodeId(f"n{i}"), report(WORK, COSTS.seconds(WORK))), 0.0)
    return scheduler


def arrive(scheduler: Scheduler, request: Request, now: float = 0.0) -> list[Command]:
    """What comes of it; everything is checked."""
    commands = scheduler.handle(RequestArrived(request, G), now)
    scheduler.check()
    return commands


def refused(scheduler: Scheduler, request: Request, now: float = 0.0) -> ErrorInfo | None:
    """Why it is turned away; None where it is not."""
    told = [command.event for command in arrive(scheduler, request, now) if isinstance(command, Tell)]
    ends = [event for event in told if isinstance(event, RequestEnded)]
    assert all(event.outcome is Outcome.REFUSED for event in ends)
    return ends[0].error if ends else None


def flood(scheduler: Scheduler, number: int, num_tokens: int = 1000, slo: SLO | None = None) -> int:
    """So many requests come at once; how many are taken."""
    slo = slo or SLO(2.0, 0.05)
    requests = (request_of(num_tokens, name=f"f{i}", slo=slo) for i in range(number))
    return sum(refused(scheduler, request) is None for request in requests)


def test_a_prompt_that_no_node_can_compute_in_time_is_refused_for_good() -> None:
    error = refused(scheduler_of("prefill", "decode"), request_of(8000, slo=SLO(1.0, 0.05)))
    assert error is not None and error.code == "slo_unattainable"
    assert "first token" in error.message and "1 s" in error.message
    assert error.retry_after_s is None, "it would be no different later"


def test_tokens_that_no_node_can_make_so_fast_are_refused_for_good() -> None:
    error = refused(scheduler_of("prefill", "decode"), request_of(100, slo=SLO(1.0, 0.005)))
    assert error is not None and error.code == "slo_unattainable" and error.retry_after_s is None
    assert "0.005 s" in error.message


def test_behind_a_long_queue_it_is_refused_with_a_time_to_come_back() -> None:
    scheduler = scheduler_of("prefill", "decode", "decode")
    taken = flood(scheduler, 40)
    assert 5 <= taken <= 15, "about 0.17 s each, within 2 s"
    error = refused(scheduler, request_of(1000, name="one more", slo=SLO(2.0, 0.05)))
    assert error is not None and error.retry_after_s is not None
    assert 0.05 < error.retry_after_s < 2.0
    assert refused(scheduler, request_of(1000, name="patient", slo=SLO(20.0, 0.05))) is None


def test_those_refused_together_do_not_come_back_together() -> None:
    scheduler = scheduler_of("prefill", "decode", "decode")
    flood(scheduler, 40)
    errors = [refused(scheduler, request_of(1000, name=f"x{i}", slo=SLO(2.0, 0.05))) for i in range(20)]
    assert len({error.retry_after_s for error in errors if error is not None}) > 10


def test_a_request_without_an_slo_is_not_refused_for_one() -> None:
    scheduler = scheduler_of("prefill", "decode", "decode")
    flood(scheduler, 40)
    assert refused(scheduler, request_of(8000, name="free", slo=None)) is None


def test_an_answer_that_cannot_be_complete_by_its_deadline_is_refused() -> None:
    scheduler = scheduler_of("prefill", "decode")
    error = refused(scheduler, request_of(100, slo=None, deadline_s=0.5, max_tokens=1000))
    assert error is not None and error.code == "slo_unattainable" and "deadline" in error.message
    assert refused(scheduler, request_of(100, name="brief", slo=None, deadline_s=0.5, max_tokens=5)) is None


def test_nothing_is_refused_by_prices_that_no_step_has_confirmed() -> None:
    scheduler = scheduler_of("prefill", "decode", proven=False)
    assert refused(scheduler, request_of(8000, slo=SLO(1.0, 0.05))) is None


def test_admission_can_be_switched_off() -> None:
    scheduler = scheduler_of("prefill", "decode", config=replace(CONFIG, refuses_unattainable=False))
    assert refused(scheduler, request_of(8000, slo=SLO(1.0, 0.05))) is None


def test_the_offline_class_waits_instead_of_being_refused() -> None:
    scheduler = scheduler_of("prefill", "decode", "decode")
    flood(scheduler, 40)
    assert refused(scheduler, request_of(8000, name="offline", priority=-1)) is None


def test_the_rows_that_will_be_there_decide_not_those_that_will_have_ended() -> None:
    scheduler = scheduler_of("prefill", "decode")
    put_rows(scheduler.view, 1, 30, tpot_s=0.05)
    crowded = request_of(100, slo=SLO(0.1, 0.045))
    assert refused(scheduler, crowded) is not None, "30 rows take 44 ms a token, with this one and the safety too much"
    later = request_of(100, name="later", slo=SLO(5.0, 0.045))
    assert refused(scheduler, later) is None, "within its TTFT enough of them will have ended"


def test_of_a_greedy_and_a_modest_tenant_only_the_greedy_one_is_turned_away() -> None:
    scheduler = scheduler_of("prefill", "decode", "decode", config=replace(CONFIG, max_ahead_s=0.2))
    slo = SLO(2.0, 0.05)
    greedy = [refused(scheduler, request_of(1000, name=f"g{i}", slo=slo, tenant="greedy")) for i in range(60)]
    assert any(greedy)
    modest = [refused(scheduler, request_of(400, name=f"m{i}", slo=slo, tenant="modest")) for i in range(3)]
    assert modest == [None] * 3


def test_a_storm_of_retries_leaves_no_trace() -> None:
    scheduler = scheduler_of("prefill", "decode", "decode")
    flood(scheduler, 40)
    before = (scheduler.num_live, scheduler.num_waiting, scheduler.view.num_booked_attempts)
    for i in range(300):
        assert refused(scheduler, request_of(1000, name=f"again {i}", slo=SLO(2.0, 0.05))) is not None
    assert (scheduler.num_live, scheduler.num_waiting, scheduler.view.num_booked_attempts) == before


@pytest.mark.parametrize("policy", ["goodput", "least_loaded", "prefix_aware", "round_robin"])
def test_every_policy_serves_what_it_takes_and_refuses_as_ever(policy: str) -> None:
    scheduler = scheduler_of("prefill", "decode", policy=policy, blocks=10)
    error = refused(scheduler, request_of(400))
    assert error is not None and error.code == "request_too_large_for_cluster"
    scheduler = scheduler_of("prefill", "mixed", "decode", policy=policy)
    commands = [c for i in range(6) for c in arrive(scheduler, request_of(100, name=f"r{i}"), float(i))]
    submitted = [c for c in commands if isinstance(c, Tell) and isinstance(c.event, Submitted)]
    assert len(submitted) == 6
    scheduler = scheduler_of("closed", policy=policy)
    error = refused(scheduler, request_of(100))
    assert error is not None and error.code == "unavailable"


def test_the_same_requests_get_the_same_answers() -> None:
    def run() -> list[Command]:
        scheduler = scheduler_of("prefill", "mixed", "decode")
        return [c for i in range(80) for c in arrive(scheduler, request_of(200 + 37 * i, name=f"r{i}"), i / 50)]

    assert run() == run()


def test_a_refusal_says_what_was_predicted() -> None:
    scheduler = scheduler_of("prefill", "decode")
    seen = node(scheduler.view, 0)
    error = refused(scheduler, request_of(8000, slo=SLO(1.0, 0.05)))
    assert error is not None
    predicted = seen.prefill_s(8000, 8000 * 4000.0)
    assert f"{predicted:.3g} s" in error.message
