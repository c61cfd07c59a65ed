"""The command line as a newcomer meets it: it works, or says what, why, and what to do next."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.service import EMBEDDED_MODEL
from kv_transfer.faults import SWITCH

pytestmark = pytest.mark.slow


def penstock(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "cluster.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, env=os.environ | environment)


def model(tmp_path: Path) -> Path:
    """A copy of the embedded model, to be spoiled."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def test_the_demo_proves_itself_and_leaves_its_figures(tmp_path: Path) -> None:
    report = tmp_path / "demo.json"
    flags = ("--launcher", "local", "--load-seconds", "1", "--rates", "4", "--json", str(report))
    done = penstock("demo", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: yes" in done.stdout
    written = json.loads(report.read_text())
    assert written["figures"]["demo.identical"] is True
    assert written["figures"]["demo.kv_moved_bytes"] > 1_000_000
    assert {sample["layout"] for sample in written["samples"]} == {"disaggregated", "aggregated"}
    assert written["machine"]["num_cores"] >= 1
    assert written["versions"]["torch"]


@pytest.mark.parametrize("mode", ["1", "2"])
def test_the_demo_fails_where_a_transferred_byte_was_flipped(mode: str) -> None:
    done = penstock("demo", "--launcher", "local", "--load-seconds", "0", **{SWITCH: mode})
    assert done.returncode == 1
    assert "demo: failed" in done.stdout
    assert ("identical: no" in done.stdout) == (mode == "2")


def test_serve_answers_generate_and_ends_well_at_a_signal() -> None:
    command = [sys.executable, "-m", "cluster.cli", "serve", "--launcher", "local", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert "serving penstock-embedded on " in line, line
        address = line.partition(" on ")[2].partition(";")[0]
        more = [server.stdout.readline() for _ in range(6)]
        assert more[2].startswith("penstock: OpenAI: http://127.0.0.1:"), more
        assert subprocess.run(shlex.split(more[3].partition("try: ")[2]), check=True, capture_output=True).stdout
        assert more[4].startswith("penstock: dashboard: http://127.0.0.1:"), more
        assert "KV moves by shm (automatic: both nodes on one host" in more[-1], more
        assert more[-1].endswith("decode-0 and prefill-0\n"), more
        done = penstock("generate", "What is a penstock?", "--address", address, "--temperature", "0", "--timing")
        assert done.returncode == 0, done.stderr
        assert "water" in done.stdout
        assert "handoff" in done.stderr
        wrong = penstock("generate", "x", "--address", address, "--temperature", "7")
        assert wrong.returncode == 1
        assert "temperature" in wrong.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def test_a_number_that_no_message_can_carry_is_named_by_its_flag() -> None:
    done = penstock("generate", "x", "--seed", str(2**70))
    assert done.returncode == 2
    assert "--seed must be a number of at most 64 bits" in done.stderr
    assert "Traceback" not in done.stderr


def test_generate_without_a_server_says_how_to_start_one() -> None:
    done = penstock("generate", "x", "--address", "127.0.0.1:1", "--timeout", "20")
    assert done.returncode == 1
    assert "penstock serve" in done.stderr


def test_a_missing_shard_is_named_before_any_node_starts(tmp_path: Path) -> None:
    folder = model(tmp_path)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    done = penstock("serve", str(folder), "--launcher", "local")
    assert done.returncode == 2
    assert "model-00001-of-00002.safetensors" in done.stderr
    assert "next:" in done.stderr


def test_an_unsupported_architecture_is_named_with_those_that_are(tmp_path: Path) -> None:
    folder = model(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(config))
    done = penstock("serve", str(folder), "--launcher", "local")
    assert done.returncode == 2
    assert "gpt2" in done.stderr
    assert "llama" in done.stderr


def test_wrong_flags_are_all_named_at_once() -> None:
    done = penstock(
        "serve", "--prefill", "-1", "--block-size", "0", "--max-num-batched-tokens", "8", "--launcher", "local"
    )
    assert done.returncode == 2
    assert "--prefill" in done.stderr
    assert "--block-size" in done.stderr
    assert "--max-num-batched-tokens" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--kv-cache-memory-bytes", str(1 << 50)), "lower --kv-cache-memory-bytes"),
        (("--num-gpu-blocks-override", str(1 << 30)), "lower --num-gpu-blocks-override"),
        (("--kv-cache-memory-bytes", "10"), "at least one block of 65536 bytes"),
        (("--max-model-len", "999999"), "--max-model-len must be at most the model's 2048"),
        (("meta-llama/Llama-3.2-1B",), "hf download"),
        (("--host", "192.0.2.1", "--insecure-no-keys"), "Cannot assign requested address"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_start_is_said_once_before_any_node_starts(flags: tuple[str, ...], says: str) -> None:
    done = penstock("serve", "--launcher", "local", "--grpc-port", "0", *flags)
    assert done.returncode == 2
    assert done.stderr.count(says) == 1, done.stderr
    assert "next:" in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr


def test_a_port_in_use_is_said_with_what_to_do() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = penstock("serve", "--launcher", "local", "--grpc-port", str(port))
    assert done.returncode == 2
    assert f"127.0.0.1:{port}: Address already in use; choose another --host or --grpc-port" in done.stderr


def test_a_mistyped_flag_is_not_guessed_at() -> None:
    done = penstock("serve", "--launcher", "local", "--prefil", "2", "--decode", "1")
    assert done.returncode == 2
    assert "--prefil" in done.stderr


def test_a_layout_without_decode_nodes_is_refused() -> None:
    done = penstock("serve", "--prefill", "2", "--launcher", "local")
    assert done.returncode == 2
    assert "decode" in done.stderr


def test_doctor_finds_this_machine_fit(tmp_path: Path) -> None:
    done = penstock("doctor", "--json", str(tmp_path / "doctor.json"))
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "doctor.json").read_text())["figures"]["doctor.failed"] == 0
