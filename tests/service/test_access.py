"""A server with keys and certificates, from its own command line: who shows both gets answers, nobody else does."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.certificates import Authority, needs_openssl
from tests.service.test_command_line import penstock

pytestmark = [pytest.mark.slow, needs_openssl]


def test_keys_and_certificates_hold_from_the_command_line_on(tmp_path: Path) -> None:
    access, config = tmp_path / "access.yaml", tmp_path / "penstock.yaml"
    user = penstock("keys", "new", "user", "--access-file", str(access), "--tenant", "acme").stdout.strip()
    admin = penstock("keys", "new", "operator", "--access-file", str(access), "--admin").stdout.strip()
    authority = Authority(tmp_path, "ours")
    tls = authority.sign("server")
    config.write_text(
        f"launcher: local\ngrpc-port: 0\nport: -1\nhost: 0.0.0.0\naccess-file: {access}\n"
        f"tls-cert: {tls.cert}\ntls-key: {tls.key}\n"
    )
    command = [sys.executable, "-m", "cluster.cli", "serve", "--config", str(config)]
    environ = os.environ | {"PENSTOCK_AGGREGATED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as server:
        assert server.stdout is not None and server.stderr is not None
        said: list[str] = []
        while not said or "operators:" not in said[-1]:
            said.append(server.stdout.readline())
            assert said[-1], server.stderr.read()
        public, operators = (int(found) for found in re.findall(r" (?:on|--admin-address) [\d.]+:(\d+)", "".join(said)))
        ask = ("generate", "What is a penstock?", "--address", f"localhost:{public}", "--temperature", "0")
        trusting = ("--tls-ca", str(authority.ca), "--timeout", "30")
        answered = penstock(*ask, *trusting, PENSTOCK_API_KEY=user)
        assert answered.returncode == 0, answered.stderr
        assert "water" in answered.stdout
        no_key, wrong = penstock(*ask, *trusting), penstock(*ask, *trusting, PENSTOCK_API_KEY=user + "x")
        assert "invalid_api_key" in no_key.stderr and "invalid_api_key" in wrong.stderr
        in_clear = penstock(*ask, "--timeout", "10", PENSTOCK_API_KEY=user)
        assert in_clear.returncode == 1
        status = ("status", "--admin-address", f"localhost:{operators}", "--tls-ca", str(authority.ca))
        assert penstock(*status, PENSTOCK_API_KEY=admin).returncode == 0
        refused = penstock(*status, PENSTOCK_API_KEY=user)
        assert "admin_forbidden" in refused.stderr
        later = penstock("keys", "new", "later", "--access-file", str(access)).stdout.strip()
        assert "invalid_api_key" in penstock(*ask, *trusting, PENSTOCK_API_KEY=later).stderr
        server.send_signal(signal.SIGHUP)
        answered = penstock(*ask, *trusting, PENSTOCK_API_KEY=later)
        assert answered.returncode == 0, answered.stderr
        server.send_signal(signal.SIGTERM)
        rest, errors = server.communicate(timeout=60)
        assert server.returncode == 0
        assert "the access file was read again: 3 keys" in errors
        for key in (user, admin, later):
            assert key not in "".join(said) + rest + errors + access.read_text()


def test_a_configuration_that_cannot_work_is_told_whole_before_anything_starts(tmp_path: Path) -> None:
    config = tmp_path / "penstock.yaml"
    config.write_text("launcher: local\nhost: 0.0.0.0\nblock-size: 0\nmax-rows: 3\ntls-cert: /nowhere\n")
    done = penstock("serve", "--config", str(config), PENSTOCK_NUM_THREADS="0", PENSTOCK_NUM_THREAD="2")
    assert done.returncode == 2
    for says in (
        "penstock.yaml, line 4: max-rows is not known",
        "environment: PENSTOCK_NUM_THREAD is not known; did you mean 'PENSTOCK_NUM_THREADS'?",
        f"--block-size must be at least 1, not 0 (block-size is from {config}, line 3)",
        "--num-threads must be at least 1, not 0 (num-threads is from PENSTOCK_NUM_THREADS)",
        "--tls-cert and --tls-key go together",
    ):
        assert done.stderr.count(says) == 1, (says, done.stderr)
