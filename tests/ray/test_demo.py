"""The README's first command, on an installed environment: nodes as Ray actors, and everything proves itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def test_the_demo_runs_as_ray_actors_and_names_them(tmp_path: Path) -> None:
    report = tmp_path / "demo.json"
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "demo",
        "--load-seconds",
        "1",
        "--rates",
        "3",
        "--json",
        str(report),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(report.read_text())["figures"]
    assert figures["demo.identical"] is True
    assert figures["demo.kv_moved_bytes"] > 1_000_000
    nodes = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("prefill-0 ", "decode-0 "))]
    assert {node[1] for node in nodes} == {"prefill", "decode"}
    assert len({node[2] for node in nodes}) == 2, "two process ids"
    assert all(len(node[3]) == 32 for node in nodes), "two actor ids"
