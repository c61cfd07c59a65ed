"""Every ended request is counted once, where it belongs; what was turned away, too."""

from dataclasses import replace

import pytest

from cluster.load_report import STAGES
from cluster.metrics.histogram import Histogram, merged
from cluster.metrics.tally import RequestTally
from core.errors import InvalidRequest, Overloaded, QuotaExceeded, Unavailable
from core.goodput import Outcome
from core.stats import Timing
from tests.metrics.place import TIMING, ended


def tally(*tenants: str) -> RequestTally:
    return RequestTally(lambda: frozenset(tenants))


def test_a_request_that_met_its_targets_is_goodput_and_nothing_else() -> None:
    counts = tally()
    counts.add(ended())
    assert dict(counts.requests) == {("standard", "", "finished", "met"): 1}
    assert dict(counts.goodput) == {("standard", ""): 1}
    assert (counts.num_met, counts.num_counted) == (1, 1)
    assert not counts.misses and not counts.refusals and not counts.failures


@pytest.mark.parametrize(
    ("fields", "stage"),
    [
        ({"ttft_s": 0.3, "timing": replace(TIMING, queue_prefill_s=0.25)}, "queue_prefill"),
        ({"ttft_s": 0.3, "timing": replace(TIMING, prefill_s=0.25)}, "prefill"),
        ({"last_token_s": 0.9, "timing": replace(TIMING, decode_s=0.8)}, "decode"),
        ({"last_token_s": 0.9, "timing": replace(TIMING, handoff_s=0.3)}, "handoff"),
        ({"outcome": Outcome.REFUSED, "code": "slo_unattainable", "ttft_s": None}, "refused"),
        ({"outcome": Outcome.EXPIRED, "code": "deadline_exceeded"}, "expired"),
        ({"outcome": Outcome.FAILED, "code": "worker_lost"}, "failed"),
        ({"ttft_s": 0.3, "timing": Timing()}, "prefill"),
    ],
)
def test_a_miss_stands_at_the_stage_that_the_load_report_would_name(fields: dict[str, object], stage: str) -> None:
    counts = tally()
    counts.add(ended(**fields))
    assert dict(counts.misses) == {stage: 1}
    assert (counts.num_met, counts.num_counted) == (0, 1)


def test_cancelled_requests_and_those_without_targets_are_left_out_of_goodput() -> None:
    counts = tally()
    counts.add(ended(outcome=Outcome.CANCELLED, code="client_closed"))
    counts.add(ended(slo=None))
    assert counts.num_counted == 0
    assert set(counts.requests) == {("standard", "", "cancelled", "none"), ("standard", "", "finished", "none")}
    assert not counts.refusals and not counts.failures


def test_refusals_and_failures_stand_by_their_code() -> None:
    counts = tally()
    counts.add(ended(outcome=Outcome.REFUSED, code="overloaded"))
    counts.add(ended(outcome=Outcome.FAILED, code="kv_corrupt"))
    counts.add(ended(outcome=Outcome.EXPIRED, code="deadline_exceeded"))
    counts.turn_away(InvalidRequest("no"), has_slo=True)
    assert dict(counts.refusals) == {"overloaded": 1, "invalid_request": 1}
    assert dict(counts.failures) == {"kv_corrupt": 1, "deadline_exceeded": 1}


@pytest.mark.parametrize("error", [Overloaded("full"), Unavailable("no node")])
def test_want_of_room_at_the_door_is_a_miss_where_there_were_targets(error: Overloaded) -> None:
    counts = tally()
    counts.turn_away(error, has_slo=True)
    counts.turn_away(error, has_slo=False)
    assert dict(counts.refusals) == {error.code: 2}
    assert dict(counts.misses) == {"refused": 1}


def test_a_key_that_has_used_its_quota_costs_no_goodput() -> None:
    counts = tally()
    counts.turn_away(QuotaExceeded("used"), has_slo=True)
    assert counts.num_counted == 0 and counts.refusals["rate_limit_exceeded"] == 1


def test_only_configured_tenants_have_a_label_of_their_own() -> None:
    counts = tally("acme")
    for name in ("acme", "made-up", "another"):
        counts.add(ended(tenant=name))
    assert counts.generation_tokens == {"acme": 11, "": 22}
    assert counts.prompt_tokens == {"acme": 7, "": 14}
    assert {tenant for _, tenant, _, _ in counts.requests} == {"acme", ""}


def test_times_of_tokens_add_up_to_what_the_client_waited() -> None:
    counts = tally()
    counts.add(ended())
    times = counts.classes["standard"]
    assert (times.ttft.count, times.tpot.count, times.itl.count, times.e2e.count) == (1, 1, 10, 1)
    assert times.itl.sum == pytest.approx(0.4) and times.tpot.sum == pytest.approx(0.04)


def test_a_broken_off_answer_tells_its_first_token_and_gaps_but_no_whole_time() -> None:
    counts = tally()
    counts.add(ended(outcome=Outcome.CANCELLED))
    times = counts.classes["standard"]
    assert (times.ttft.count, times.tpot.count, times.itl.count, times.e2e.count) == (1, 0, 10, 0)
    assert all(histogram.count == 0 for histogram in counts.stages.values())


def test_stages_and_the_unaccounted_rest_add_up_to_the_wall() -> None:
    counts = tally()
    counts.add(ended())
    assert sum(histogram.sum for histogram in counts.stages.values()) == pytest.approx(0.5)
    assert set(counts.stages) == {*STAGES, "unaccounted"}


def test_a_second_attempt_is_a_retry() -> None:
    counts = tally()
    counts.add(ended(num_attempts=3))
    counts.add(ended())
    counts.add(ended(num_attempts=0, outcome=Outcome.REFUSED))
    assert counts.num_retries == 2


def test_a_value_on_a_bound_belongs_to_it_and_buckets_add_up() -> None:
    one = Histogram((1.0, 2.0))
    for each in (0.5, 1.0, 1.5, 9.0):
        one.add(each)
    assert one.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    two = merged([one, one], one.bounds)
    assert two.count == 8 and two.sum == 24.0
