"""`penstock bench serve`: what it sends and counts; and once a live cluster, measured, recorded and replayed."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.bench.serve import Watched, request_of
from cluster.bench.serve_prompts import Prompts
from cluster.cli import main
from cluster.load import Answer
from cluster.workload import gaps
from cluster.workload.items import WorkItem
from core.request import SLO


def test_prompts_have_their_lengths_and_share_exactly_their_blocks() -> None:
    prompts = Prompts(3, 1000, 512)
    one, two = (prompts.ids(n, WorkItem(0.0, 1100, 1, (0, 1, 2 + n))) for n in range(2))
    assert len(one) == len(two) == 1100
    assert one[:1024] == two[:1024] and one[1024:] != two[1024:]
    alone = [prompts.ids(n, WorkItem(0.0, 50, 1)) for n in range(2)]
    assert alone[0] != alone[1] and alone[0] == prompts.ids(0, WorkItem(0.0, 50, 1))
    assert all(8 <= token < 1000 for token in one)


def test_a_request_forces_its_length_and_says_its_class() -> None:
    item = WorkItem(0.0, 3, 17, tenant="a", priority=2, offline=True)
    request = request_of(item, [9, 9, 9], SLO(1.0, 0.1))
    assert request.sampling.max_tokens == 17 and request.sampling.ignore_eos
    assert (request.tenant, request.priority, request.slo.ttft_s) == ("a", -1, 1.0)
    assert not request_of(item, [9], None).HasField("slo")


def test_tokens_that_come_together_have_no_time_between_them() -> None:
    answer = Answer()
    answer.take(pb.GenerateResponse(token_ids=[1]), 0.5)
    answer.take(pb.GenerateResponse(token_ids=[2, 3]), 0.6)
    assert (answer.ttft_s, answer.last_token_s, answer.num_tokens) == (0.5, 0.6, 3)
    assert sum(answer.gaps.values()) == 2 and answer.gaps[gaps.class_of(0.0)] == 1


def test_mix_changes_and_reversals_are_seen_from_look_to_look() -> None:
    watched = Watched()
    for at_s, (role, epoch) in enumerate([("mixed", 0), ("prefill", 1), ("mixed", 2), ("mixed", 2)]):
        state = pb.GetClusterResponse(nodes=[pb.Node(id="a@1", name="a", role=role, mix=pb.Mix(epoch=epoch))])
        watched.look(state, float(at_s))
    assert watched.changes == [(1.0, "a"), (2.0, "a")] and watched.num_reversals == 1


def test_bench_serve_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--timeout", "0", "--node-hour-price", "-1"]) == 2
    said = capsys.readouterr().err
    assert "--timeout" in said and "--node-hour-price" in said
    assert main(["bench", "serve", "--workload", "sharegpt,requests=3,tenant=a b"]) == 2
    assert "a b" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_live_cluster_is_measured_recorded_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, report = tmp_path / "record", tmp_path / "report.json"
    flags = ["--launcher", "local", "--grpc-port", "0", "--record", str(record)]
    command = [sys.executable, "-m", "cluster.cli", "serve", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        serving = re.search(r"serving \S+ on ([\d.:]+);", server.stdout.readline())
        assert serving is not None
        load = ["--workload", "lengths,in=uniform:20:200,out=8,requests=20,rate=10,tenant=a", "--json", str(report)]
        assert main(["bench", "serve", "--address", serving.group(1), *load]) == 0
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    figures = json.loads(report.read_text())["figures"]
    assert figures["requests"] == figures["finished"] == 20
    assert figures["goodput_rps"] > 0 and figures["client_cpu_share"] > 0 and figures["nodes"] == 2
    assert main(["replay", str(record)]) == 0
    assert "all commands are the recorded ones" in capsys.readouterr().out
