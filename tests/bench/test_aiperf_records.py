"""AIPerf's export beside the server's own account of the same requests (experiment 14)."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from core.request import SLO

records = import_module("experiments.14-aiperf.records")

SECOND_NS = 1_000_000_000
REFUSED = {"code": 503, "type": "Service Unavailable", "message": "its first token would come after 3 s"}


def line(name: str, at_s: float, **metrics_ms: float) -> str:
    """A request as AIPerf lists it, sent a millisecond after it was due; without times a refused one."""
    start_ns = int((100 + at_s) * SECOND_NS)
    told = {"x_request_id": name, "request_start_ns": start_ns, "credit_issued_ns": start_ns - SECOND_NS // 1000}
    metrics = {key: {"value": value, "unit": "ms"} for key, value in metrics_ms.items()}
    return json.dumps({"metadata": told, "metrics": metrics} | ({} if metrics else {"error": REFUSED}))


GOOD = line("a", 0, time_to_first_token=300, inter_token_latency=80, good_request_count=1)
LATE = line("b", 2, time_to_first_token=1600, inter_token_latency=90, good_request_count=0)
LOG = """penstock: serving tiny on 127.0.0.1:1; nodes: 2
{"ended_at": 1.0, "client_id": "a", "prompt_tokens": 700, "ttft_s": 0.298, "tpot_s": 0.081, "met": true}
{"ended_at": 1.0, "client_id": null, "prompt_tokens": 9, "ttft_s": 0.1, "tpot_s": 0.1, "met": null}
{"ended_at": 2.0, "client_id": "b", "prompt_tokens": 800, "ttft_s": 1.496, "tpot_s": 0.089, "met": true}
{"ended_at": 2.0, "client_id": "c", "prompt_tokens": 900, "ttft_s": null, "tpot_s": null, "met": false}
"""


def written(folder: Path, num_good: int = 1, goodput_rps: float = 0.125) -> Path:
    """A run of three requests, listed in the order in which they ended; AIPerf's window is of 8 s."""
    (folder / "profile_export.jsonl").write_text("\n".join((LATE, GOOD, line("c", 4))) + "\n")
    said = {"goodput": {"avg": goodput_rps}, "good_request_count": {"avg": num_good}}
    window = {"start_time": "2026-11-26T15:59:58.5", "end_time": "2026-11-26T16:00:06.5"}
    (folder / "profile_export_aiperf.json").write_text(json.dumps(said | window))
    return folder


def test_requests_come_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    run = records.read_aiperf(written(tmp_path))
    assert [(each.id, each.at_s, each.ttft_s) for each in run.requests] == [
        ("a", 0, 0.3),
        ("b", 2, 1.6),
        ("c", 4, None),
    ]
    assert [round(each.late_s, 6) for each in run.requests] == [0.001] * 3
    assert (run.num_good, run.num_errors, run.goodput_rps, run.duration_s) == (1, 1, 0.125, 8)


def test_a_summary_that_counts_other_requests_than_it_lists_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="2 good requests and lists 1"):
        records.read_aiperf(written(tmp_path, num_good=2))


def test_a_goodput_over_another_time_than_the_window_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"0.2 good requests a second: not 1 in 8.0 s"):
        records.read_aiperf(written(tmp_path, goodput_rps=0.2))


def test_what_is_replayed_is_what_was_sent_refused_requests_included(tmp_path: Path) -> None:
    workload = records.as_workload(records.read_aiperf(written(tmp_path)), records.served_by_id(LOG), 40)
    assert [(item.at_s, item.prompt_tokens, item.output_tokens) for item in workload.items] == [
        (0, 700, 40), (2, 800, 40), (4, 900, 40),
    ]  # fmt: skip
    assert workload.arrivals_s == 6


def test_a_request_that_the_server_did_not_log_stops_the_comparison(tmp_path: Path) -> None:
    run = records.read_aiperf(written(tmp_path))
    served = {name: each for name, each in records.served_by_id(LOG).items() if name != "c"}
    with pytest.raises(RuntimeError, match="1 of AIPerf's requests are not in the server's log, c is one"):
        records.as_workload(run, served, 40)


def test_verdicts_that_differ_are_named_and_times_are_compared_where_both_have_them(tmp_path: Path) -> None:
    found = records.differences(records.read_aiperf(written(tmp_path)), records.served_by_id(LOG))
    assert (found.only_aiperf, found.only_server) == ((), ("b",))
    assert found.ttft_s == pytest.approx((0.002 + 0.104) / 2)
    assert found.tpot_s == pytest.approx(0)


def test_a_request_is_near_when_either_time_is_close_to_its_target(tmp_path: Path) -> None:
    run = records.read_aiperf(written(tmp_path))
    assert records.nearest(run, SLO(1.55, 0.2), 0.05) == 1
    assert records.nearest(run, SLO(1.55, 0.082), 0.05) == 2
    assert records.nearest(run, SLO(5.0, 0.5), 0.05) == 0


def test_a_counter_is_summed_over_its_labels_and_not_mixed_with_others() -> None:
    page = '# HELP a_total x\na_total{class="x"} 3.0\na_total{class="y"} 4.0\na_total_more 9.0\nb_a_total 5\n'
    assert records.counter(page, "a_total") == 7
    assert records.counter(page, "nothing_total") == 0


def test_two_runs_of_one_schedule_are_compared_from_their_first_request(tmp_path: Path) -> None:
    run = records.read_aiperf(written(tmp_path))
    shifted = [replace(each, at_s=1.01 * each.at_s) for each in run.requests]
    assert records.largest_shift_s(run.requests, shifted) == pytest.approx(0.04)
