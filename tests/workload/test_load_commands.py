"""simulate, tune, trace: from flags to files, small, and one clear message for what cannot be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.load_report import LOST_AT
from tests.unit.test_cost_table import table

TRACE = "".join(
    json.dumps({"timestamp": at, "input_length": 600, "output_length": 8, "hash_ids": [0, at]}) + "\n"
    for at in range(0, 2000, 100)
)
FITS = {
    "opt-13b": {
        tp: {
            "prefill": [14.7, 0.0686, 2.4e-6],
            "decoding_smallbs": [13.3, 3.4e-4, 0.063],
            "decoding_largebs": [10.6, 3.1e-4, 0.086],
            "decoding_large_small_bs_threshold": 95,
        }
        for tp in ("1", "2")
    }
}


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text(TRACE)
    return str(path)


@pytest.mark.parametrize("layout", ["aggregated", "disaggregated:1:1", "adaptive"])
def test_simulate_writes_the_same_figures_for_the_same_seed(layout: str, trace: str, tmp_path: Path) -> None:
    flags = ["simulate", "--trace", trace, "--layout", layout, "--gpu-hour-price", "2", "--rate", "20"]
    reports = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in reports:
        assert main([*flags, "--json", str(path)]) == 0
    one, two = (json.loads(path.read_text()) for path in reports)
    assert (one["figures"], one["samples"]) == (two["figures"], two["samples"])
    figures = one["figures"]
    assert figures["requests"] == 20 and figures["attainment"] == 1.0 and figures["lost"] == 0
    assert figures["goodput_rps"] == pytest.approx(20, rel=0.1)
    assert figures["cost_per_million_output_tokens"] > 0 and "itl_s_p99" in figures
    assert {f"slo_lost_{where}" for where in LOST_AT} <= set(figures)
    assert len([sample for sample in one["samples"] if sample["kind"] == "request"]) == 20
    assert len([sample for sample in one["samples"] if sample["kind"] == "node"]) == 2


def test_simulate_reads_fits_with_unequal_sizes(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, path = tmp_path / "fits.json", tmp_path / "report.json"
    table.write_text(json.dumps(FITS))
    flags = ["--cost-table", str(table), "--tp", "1", "--prefill-tp", "2", "--layout", "disaggregated:1:1"]
    assert main(["simulate", "--trace", trace, *flags, "--json", str(path)]) == 0
    assert "66,112 tokens of KV" in capsys.readouterr().out
    assert json.loads(path.read_text())["figures"]["gpus"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layout", "disaggregated:0:2"], ("no node prefills",)),
        (["--layout", "disaggregated:2:0"], ("no node decodes",)),
        (["--layout", "disaggregated:2"], ("--layout",)),
        (["--layout", "disaggregated:1:1", "--nodes", "3"], ("2 nodes", "3")),
        (["--layout", "aggregated", "--nodes", "0"], ("--nodes",)),
        (["--ttft-slo", "0"], ("--ttft-slo",)),
        (["--tpot-slo", "nan"], ("--tpot-slo",)),
        (["--rate", "0"], ("--rate",)),
        (["--requests", "0"], ("--requests",)),
        (["--scale", "0"], ("scaled",)),
        (["--gpu", "V100"], ("V100", "A100")),
        (["--model-shape", "gpt-9"], ("gpt-9", "llama-3-8b")),
        (["--model-shape", "llama-3-70b", "--gpu", "L40S"], ("no room",)),
        (["--mfu", "0"], ("MFU",)),
        (["--cost-table", "nowhere.json"], ("nowhere.json",)),
        (["--cost-table", "nowhere.json", "--gpu", "H100"], ("contradict",)),
        (["--beside-table", "nowhere.json"], ("--beside-table nowhere.json", "belongs to a --cost-table")),
        (["--step-overhead", "-1"], ("--step-overhead",)),
        (["--row-overhead", "nan"], ("--row-overhead",)),
        (["--message-latency", "-0.1"], ("--message-latency",)),
        (["--block-size", "0"], ("--block-size",)),
        (["--workload", "sharegpt,rate=-1"], ("rate",)),
        (["--json", "/nowhere/report.json", "--plot", "/nowhere/plot.png"], ("--json", "--plot")),
    ],
)
def test_simulate_says_what_is_wrong(
    flags: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *flags]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)


def test_simulate_reads_splitwise_rows_and_tables_of_penstock_profile(trace: str, tmp_path: Path) -> None:
    rows, own, path = tmp_path / "rows.csv", tmp_path / "own.json", tmp_path / "report.json"
    lines = ["model,hardware,tensor_parallel,prompt_size,batch_size,token_size,prompt_time,token_time"]
    lines += [f"llama2-70b,h100-80gb,8,512,{b},128,{40 + 20 * b},{30 + b}" for b in (1, 2, 4, 8)]
    rows.write_text("\n".join(lines) + "\n")
    table().write(own)
    for file, words in ((rows, "llama2-70b on 8 x h100-80gb"), (own, "as measured in own.json")):
        flags = ["--cost-table", str(file), "--layout", "disaggregated:1:1"]
        assert main(["simulate", "--trace", trace, *flags, "--json", str(path)]) == 0
        report = json.loads(path.read_text())
        assert words in report["samples"][0]["nodes"]
        assert report["figures"]["finished"] + report["figures"]["refused"] == 20


def test_what_a_shell_adds_makes_simulated_steps_longer(trace: str, tmp_path: Path) -> None:
    own, path, tpot_s = tmp_path / "own.json", tmp_path / "report.json", list[float]()
    table().write(own)
    for added in ([], ["--step-overhead", "0.01"], ["--beside-table", str(own), "--row-overhead", "0.02"]):
        flags = ["--cost-table", str(own), "--layout", "aggregated", "--no-refusals", *added]
        assert main(["simulate", "--trace", trace, *flags, "--json", str(path)]) == 0
        tpot_s.append(json.loads(path.read_text())["figures"]["tpot_s_p50"])
    assert tpot_s[1] >= tpot_s[0] + 0.01 and tpot_s[2] >= tpot_s[0] + 0.02


@pytest.mark.parametrize("content", ["{", "{}", "a,b\n1,2\n", '{"kind": "penstock cost table"}'])
def test_a_cost_table_that_is_none_is_one_message(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table"
    table.write_text(content)
    assert main(["simulate", "--cost-table", str(table)]) == 2
    assert capsys.readouterr().err.count("penstock: error") == 1


def test_simulate_names_the_models_of_a_table_that_has_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "fits.json"
    table.write_text(json.dumps(FITS | {"opt-66b": FITS["opt-13b"]}))
    assert main(["simulate", "--cost-table", str(table)]) == 2
    assert "opt-13b, opt-66b" in capsys.readouterr().err


def test_tune_prints_the_surface_and_says_whether_to_disaggregate(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, path = tmp_path / "fits.json", tmp_path / "tune.json"
    table.write_text(json.dumps(FITS))
    flags = ["--cost-table", str(table), "--gpus", "2", "--chunks", "512", "2048", "--rates", "2", "20", "--quick"]
    flags += ["--ttft-slo", "0.3", "--tpot-slo", "0.05"]
    assert main(["tune", "--trace", trace, *flags, "--adaptive", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "isaggregate" in said and "P:D 1:1" in said
    report = json.loads(path.read_text())
    figures, points = report["figures"], [each for each in report["samples"] if each["kind"] == "point"]
    assert figures["disaggregate"] is figures["verdict"].startswith("Disaggregate")
    assert figures["best_layout"] in ("aggregated", "disaggregated:1:1")
    assert {(each["layout"], each["chunk"], each["rate_rps"]) for each in points} >= {
        ("aggregated", chunk, rate) for chunk in (512, 2048) for rate in (2, 20)
    }
    assert "adaptive" in {each["layout"] for each in points}
    assert {each["kind"] for each in report["samples"]} == {"point", "capacity"}


def test_tune_says_that_nothing_meets_an_slo_that_nothing_can_meet(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--gpus", "2", "--chunks", "512", "--rates", "5", "--ttft-slo", "0.0001", "--quick"]
    assert main(["tune", "--trace", trace, *flags]) == 0
    assert "Infeasible" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--chunks", "0"], "--chunks"),
        (["--rates", "0"], "--rates"),
        (["--gpus", "0"], "--gpus"),
        (["--target", "2"], "--target"),
        (["--keep", "0"], "--keep"),
        (["--tp-sizes", "two"], "--tp-sizes"),
        (["--slos", "1"], "--slos"),
        (["--slos", "1:0"], "--tpot-slo"),
    ],
)
def test_tune_says_what_is_wrong(flags: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--workload", "sharegpt,requests=5", *flags]) == 2
    assert word in capsys.readouterr().err


def test_plots_need_the_extra_and_say_so_before_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["simulate", "--plot", str(tmp_path / "plot.png")]) == 2
    assert "penstock[tune]" in capsys.readouterr().err


def test_trace_convert_writes_what_simulate_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "native.jsonl"
    assert main(["trace", "convert", "mooncake-conversation,requests=30", str(target)]) == 0
    assert main(["simulate", "--trace", str(target), "--layout", "aggregated"]) == 0
    assert "30 requests" in capsys.readouterr().out


def test_simulate_needs_neither_torch_nor_ray_nor_grpc(trace: str) -> None:
    code = (
        "import sys; from cluster.simulate_command import run_simulate; import cluster.tune_command; "
        "bad = {'torch', 'ray', 'grpc', 'transformers', 'matplotlib'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
