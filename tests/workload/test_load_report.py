"""The report of load: every figure by its public name, and where SLOs were lost."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.capacity_search import Point, bisected, first_crossing
from cluster.load_report import LOST_AT, LoadRun, load_report, lost_at
from cluster.workload import gaps
from cluster.workload.items import WorkItem
from cluster.workload.served import ServedRequest
from core.goodput import Outcome
from core.request import SLO
from core.stats import Timing

TARGETS = SLO(1.0, 0.1)
PUBLIC = {
    "goodput_rps",
    "goodput_rps_per_node",
    "attainment",
    *(f"{name}_{share}" for name in ("ttft_s", "tpot_s") for share in ("p50", "p90", "p99")),
    "itl_s_p99",
    "refused",
    "failed",
    "lost",
    "mix_changes",
    "reversals",
    "output_tokens_per_s",
    "cost_per_million_output_tokens",
    *(f"slo_lost_{where}" for where in LOST_AT),
}


def finished(ttft_s: float, tpot_s: float, timing: Timing | None = None, num_tokens: int = 11) -> ServedRequest:
    return ServedRequest(
        WorkItem(0.0, 100, num_tokens),
        TARGETS,
        Outcome.FINISHED,
        num_tokens,
        ttft_s,
        ttft_s + tpot_s * (num_tokens - 1),
        gaps.counted([tpot_s] * (num_tokens - 1)),
        timing,
    )


def ended(outcome: Outcome) -> ServedRequest:
    return ServedRequest(WorkItem(0.0, 100, 11), TARGETS, outcome)


def test_every_public_figure_is_there_under_its_name() -> None:
    figures = load_report(LoadRun([finished(0.5, 0.05)], 1.0, 2.0, 2, 2, cost=1.0))
    assert set(figures) >= PUBLIC


def test_refused_expired_failed_and_lost_are_misses_and_cancelled_is_left_out() -> None:
    records = [finished(0.5, 0.05), *map(ended, (Outcome.REFUSED, Outcome.EXPIRED, Outcome.FAILED, Outcome.CANCELLED))]
    figures = load_report(LoadRun(records, 10.0, 20.0, 4, 8, num_lost=1, num_mix_changes=3, num_reversals=1, cost=5.0))
    assert figures["attainment"] == pytest.approx(1 / 5)
    assert (figures["goodput_rps"], figures["goodput_rps_per_node"]) == (0.1, 0.025)
    assert [figures[name] for name in ("refused", "expired", "failed", "lost", "cancelled")] == [1, 1, 1, 1, 1]
    assert (figures["mix_changes"], figures["reversals"], figures["requests"]) == (3, 1, 6)
    assert figures["output_tokens_per_s"] == 11 / 20
    assert figures["cost_per_million_output_tokens"] == pytest.approx(5.0 / 11 * 1e6)
    assert sum(value for name, value in figures.items() if name.startswith("slo_lost_")) == 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("record", "where"),
    [
        (finished(1.5, 0.05, Timing(prefill_s=1.2, queue_prefill_s=0.3)), "prefill"),
        (finished(1.5, 0.05, Timing(prefill_s=0.5, queue_prefill_s=0.8, admit_s=0.2)), "queue_prefill"),
        (finished(1.5, 0.05, Timing(prefill_s=0.5, queue_prefill_s=0.2, admit_s=0.8)), "admit"),
        (finished(0.5, 0.2, Timing(decode_s=1.8, handoff_s=0.2)), "decode"),
        (finished(0.5, 0.2, Timing(decode_s=0.8, handoff_s=1.1, reserve_s=0.1)), "handoff"),
        (finished(0.5, 0.2, Timing(decode_s=0.8, queue_decode_s=1.2)), "queue_decode"),
        (finished(0.5, 0.2, Timing(decode_s=0.8, reserve_s=1.2)), "reserve"),
        (finished(1.5, 0.2, Timing(decode_s=2.0, queue_prefill_s=1.4)), "queue_prefill"),
        (finished(1.5, 0.05), "unaccounted"),
        (ended(Outcome.REFUSED), "refused"),
    ],
)
def test_an_slo_is_lost_to_the_work_that_broke_it_alone_or_to_the_longest_wait(
    record: ServedRequest, where: str
) -> None:
    assert lost_at(record) == where


def test_tenants_and_classes_have_figures_of_their_own() -> None:
    items = [
        WorkItem(0.0, 1, 11, tenant="a"),
        WorkItem(0.0, 1, 11, tenant="b", priority=2),
        WorkItem(0.0, 1, 11, offline=True),
    ]
    records = [replace(finished(0.5, 0.05), item=item) for item in items]
    records[1] = replace(records[1], ttft_s=3.0)
    figures = load_report(LoadRun(records, 1.0, 1.0, 1, 1))
    assert (figures["a.attainment"], figures["b, priority 2.attainment"]) == (1.0, 0.0)
    assert figures["no tenant, offline.ttft_s_p50"] == 0.5


def test_each_request_is_held_to_its_own_slo() -> None:
    strict = replace(finished(0.5, 0.05), slo=SLO(0.1, 0.1))
    assert load_report(LoadRun([finished(0.5, 0.05), strict], 1.0, 1.0, 1, 1))["attainment"] == 0.5


def test_the_first_crossing_lies_straight_between_the_points_around_it() -> None:
    curve = [Point(*point) for point in ((1.0, 1.0), (2.0, 0.95), (3.0, 0.75), (4.0, 0.95))]
    assert first_crossing(curve, 0.9).rate_rps == pytest.approx(2.25)
    assert first_crossing(curve[:2], 0.9).rate_rps == 2.0 and not first_crossing(curve[:2], 0.9).is_bracketed
    assert first_crossing([Point(1.0, 0.5)], 0.9).rate_rps == 0.0


@pytest.mark.parametrize("start", [0.1, 1.0, 100.0])
def test_bisection_finds_the_highest_rate_from_either_side(start: float) -> None:
    found = bisected(lambda rate: 1.0 if rate <= 7.3 else 0.5, start, tolerance=0.01)
    assert found.is_bracketed and found.rate_rps == pytest.approx(7.3, rel=0.011)


@pytest.mark.parametrize(("attain", "is_found"), [(lambda _: 1.0, True), (lambda _: 0.0, False)])
def test_bisection_says_where_it_found_no_end(attain: Callable[[float], float], is_found: bool) -> None:
    found = bisected(attain, 1.0)
    assert not found.is_bracketed and (found.rate_rps > 0) is is_found
