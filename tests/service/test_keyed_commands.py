"""The commands that ask for text show their key, where the server asks for one."""

import json
from pathlib import Path

import pytest

from cluster.cli import main
from tests.service.running import running

pytestmark = pytest.mark.slow
LOAD = "lengths,in=8,out=2,rate=20,requests=5"


def test_chat_batches_traces_and_the_load_of_bench_serve_show_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    access = tmp_path / "access.yaml"
    assert main(["keys", "new", "user", "--access-file", str(access), "--admin"]) == 0
    key = capsys.readouterr().out.strip()
    source = tmp_path / "in.jsonl"
    body = {"prompt": "a", "max_tokens": 2}
    source.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")
    with running("--aggregated", "1", "--access-file", str(access)) as service:
        assert service.service.http is not None
        url = f"{service.service.http.url}/v1"
        commands = (
            ["chat", "--url", url, "-q", "hi", "--max-tokens", "2"],
            ["trace", "show", "--address", service.address],
            ["bench", "serve", "--address", service.address, "--workload", LOAD],
        )
        batch = ["run-batch", "-i", str(source), "-o", str(tmp_path / "out"), "--url", url]
        for command in (*commands, [*batch, "--overwrite"]):
            assert main(command) == 1
        assert "invalid_api_key" in capsys.readouterr().err
        monkeypatch.setenv("PENSTOCK_API_KEY", key)
        for command in (*commands, [*batch, "--overwrite"]):
            assert main(command) == 0, capsys.readouterr()
    assert json.loads((tmp_path / "out").read_text())["response"]["status_code"] == 200
