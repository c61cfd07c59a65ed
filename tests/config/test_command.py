"""`penstock config`: the table of `serve` as a listing, a schema and a file, and the whole check of a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from cluster.cli import _parser, main
from cluster.config_bounds import BOUNDS, Bound
from cluster.config_layers import read_arguments
from cluster.config_table import Kind, settings_of
from cluster.config_yaml import read_document
from cluster.gateway_flags import checked_gateway
from cluster.live.token_file import kept_token
from cluster.serve_config import checked
from core.errors import ConfigError
from tests.config.commands import small

TABLES = _parser().parse_args(["config", "schema"]).tables
SETTINGS, GATEWAY_SETTINGS = settings_of(*TABLES["serve"]), settings_of(*TABLES["gateway"])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["config", *words])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_CONFIG", raising=False)


def test_show_tells_each_value_that_was_set_and_where(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("prefill: 2\ndecode: 1\nmax-num-batched-tokens: 2K\n")
    monkeypatch.setenv("PENSTOCK_MAX_NUM_SEQS", "32")
    status, out, err = run(capsys, "show", "--config", str(path), "--decode", "3", "--json")
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert shown["prefill"] == {"value": 2, "source": f"{path}, line 1"}
    assert shown["decode"] == {"value": 3, "source": "flag"}
    assert shown["max-num-batched-tokens"]["value"] == 2048
    assert shown["max-num-seqs"] == {"value": 32, "source": "PENSTOCK_MAX_NUM_SEQS"}
    assert shown["block-size"] == {"value": 16, "source": "default"}
    assert set(shown) == {setting.key for setting in SETTINGS}
    _, table, _ = run(capsys, "show", "--config", str(path))
    assert "prefill" in table and "block-size" not in table


def test_show_tells_all_problems_after_the_values(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("blok-size: 3\nmax-num-seqs: 600\nadmin-port: 70000\nttft-slo: -1\ncontroller: on\n")
    status, out, err = run(capsys, "show", "--config", str(path), "--host", "0.0.0.0")
    assert status == 2
    assert "max-num-seqs" in out
    problems = [line for line in err.splitlines() if "error" in line]
    for says in (
        "line 1: blok-size is not known; did you mean 'block-size'?",
        "--max-num-batched-tokens (576) must exceed --max-num-seqs (600)",
        f"(max-num-seqs is from {path}, line 2)",
        "--ttft-slo must be above 0",
        "--admin-port must be from 0 to 65535",
    ):
        assert any(says in problem for problem in problems), (says, err)


def test_a_sound_file_is_said_to_be_and_the_environment_does_not_matter(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_NONSENSE", "1")
    path = tmp_path / "p.yaml"
    path.write_text("aggregated: 2\nlauncher: local\n")
    status, out, _ = run(capsys, "validate", str(path))
    assert status == 0
    assert "sound, 2 settings: aggregated, launcher" in out
    path.write_text("agregated: 2\nmodel: /nowhere\n")
    status, _, err = run(capsys, "validate", str(path))
    assert status == 2
    assert "did you mean 'aggregated'?" in err
    assert "'/nowhere' is not a folder" in err


def test_the_schema_is_closed_and_takes_what_the_program_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    schema = json.loads(run(capsys, "schema")[1])
    Draft202012Validator.check_schema(schema)
    takes = Draft202012Validator(schema).is_valid
    assert takes({"prefill": 1, "max-num-batched-tokens": "16K", "slo-admission": "off", "swap-space": 1.5})
    for wrong in ({"blok-size": 1}, {"block-size": "x"}, {"dtype": "float99"}, {"prefill": True}, {"host": 3}):
        assert not takes(wrong), wrong
    assert "/" not in str(schema["properties"]["model"].get("default", "")), "a place of this machine"


def _beyond(bound: Bound) -> list[float]:
    """The nearest values that a bound does not take."""
    found = [] if bound.least is None else [bound.least - 1]
    found += [] if bound.above is None else [bound.above]
    return found + ([] if bound.most is None else [bound.most + 1])


def _said(flag: str, value: float) -> list[str]:
    """What the command says of one flag by name."""
    is_gateways = flag == "join-timeout"
    is_whole = next(it.kind is Kind.INT for it in (*SETTINGS, *GATEWAY_SETTINGS) if it.key == flag)
    argv = ["gateway" if is_gateways else "serve", f"--{flag}", str(int(value) if is_whole else value)]
    found = read_arguments(_parser(), argv, {}).args.layers
    try:
        checked_gateway(found) if is_gateways else checked(found)
    except ConfigError as error:
        return [problem for problem in error.problems if problem.startswith((f"--{flag} must", f"--{flag} ("))]
    return []


@pytest.mark.parametrize("flag", BOUNDS)
def test_a_bound_of_the_schema_is_the_programs(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    bound, of = BOUNDS[flag], ("--of", "gateway") if flag == "join-timeout" else ()
    takes = Draft202012Validator(json.loads(run(capsys, "schema", *of)[1])).is_valid
    for value in _beyond(bound):
        assert _said(flag, value), value
        assert not takes({flag: value}), value
    for edge in (bound.least, bound.most):
        if edge is not None:
            assert not [it for it in _said(flag, edge) if "must be" in it], edge
            assert takes({flag: edge}), edge


def test_a_gateways_file_has_a_schema_and_is_checked_as_such(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = json.loads(run(capsys, "schema", "--of", "gateway")[1])["properties"].keys()
    assert {"join", "cluster-token-file", "grpc-port", "tls-cert"} <= keys
    assert "prefill" not in keys
    assert "#join: null" in run(capsys, "init", "--of", "gateway")[1]
    kept_token(tmp_path / "token")
    path = tmp_path / "g.yaml"
    path.write_text(f"join: head:7000\ncluster-token-file: {tmp_path / 'token'}\nprefill: 3\n")
    status, out, _ = run(capsys, "validate", str(path), "--of", "gateway")
    assert status == 0
    assert "sound, 2 settings: join, cluster-token-file" in out
    status, _, err = run(capsys, "validate", str(path))
    assert status == 2
    assert "join is not known" in err


def test_the_file_to_start_from_has_every_setting_and_changes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = run(capsys, "init")[1]
    path = tmp_path / "start.yaml"
    path.write_text(text)
    assert read_document(path).value is None
    assert "sound, 0 settings" in run(capsys, "validate", str(path))[1]
    by_key = {setting.key: setting for setting in SETTINGS}
    lines = [line[1:] for line in text.splitlines() if line.startswith("#") and line[1:2].isalpha()]
    assert {line.partition(":")[0] for line in lines} == set(by_key)
    path.write_text("\n".join(lines))
    for key, value in read_document(path).value.items():  # type: ignore[union-attr]
        if value is not None:
            assert by_key[key].from_file(value) == by_key[key].default, key


def test_every_flag_of_serve_is_a_setting_with_a_variable_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS) > 40
    assert {setting.dest for setting in SETTINGS} <= vars(_parser().parse_args(["serve"])).keys()
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = "".join(capsys.readouterr().out.split())
    assert [setting.key for setting in SETTINGS if f"[{setting.variable}]" not in told] == ["log-level"]


def test_a_flag_that_somebody_adds_is_in_the_table_at_once() -> None:
    parser = small()
    run_parser = parser.parse_args(["run"]).config_parsers[1]
    run_parser.add_argument("--brand-new", type=int, default=5)
    (new,) = [setting for setting in settings_of(run_parser) if setting.key == "brand-new"]
    assert (new.variable, new.from_text("2K"), new.default) == ("PENSTOCK_BRAND_NEW", 2048, 5)


def test_a_reader_that_has_enough_is_no_fault() -> None:
    command = [sys.executable, "-m", "cluster.cli", "config", "init"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (141, b"")
