"""Batches of a real server that is killed: no line answered twice, none lost; and others come first."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

NUM_LINES = 300
FLAGS = ("--launcher", "local", "--aggregated", "1", "--grpc-port", "0", "--admin-port", "-1")


def lines() -> bytes:
    """Requests of a few dozen tokens each, all different."""
    told = []
    for number in range(NUM_LINES):
        body = {"prompt": f"Once upon a time, {number},", "max_tokens": 30, "seed": number, "ignore_eos": True}
        told.append({"custom_id": f"n{number}", "method": "POST", "url": "/v1/completions", "body": body})
    return "".join(json.dumps(line) + "\n" for line in told).encode()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[openai.OpenAI, subprocess.Popen[str]]]:
    """A server of its own process, killed at the end."""
    command = [sys.executable, "-m", "cluster.cli", "serve", *FLAGS, "--batch-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = next(found.group(1) for line in process.stdout if (found := re.search(r"OpenAI: (\S+/v1)", line)))
        with openai.OpenAI(base_url=url, api_key="none") as client:
            yield client, process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_killed_server_goes_on_with_its_batches_and_answers_every_line_once(tmp_path: Path) -> None:
    name, counts = "", list[int]()
    for _ in range(3):
        with serving(tmp_path) as (client, _process):
            if not name:
                file = client.files.create(file=("in.jsonl", lines()), purpose="batch")
                asked = {"endpoint": "/v1/completions", "completion_window": "24h"}
                name = client.batches.create(input_file_id=file.id, **asked).id  # type: ignore[arg-type]
            batch = client.batches.retrieve(name)
            assert batch.request_counts is not None
            wanted = batch.request_counts.completed + NUM_LINES // 4
            while batch.request_counts.completed < wanted and batch.status != "completed":
                time.sleep(0.01)
                batch = client.batches.retrieve(name)
                assert batch.request_counts is not None
            counts.append(batch.request_counts.completed)
    with serving(tmp_path) as (client, _process):
        while (batch := client.batches.retrieve(name)).status != "completed":
            time.sleep(0.05)
        assert batch.output_file_id is not None and batch.error_file_id is None
        told = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert 0 < counts[0] < NUM_LINES
    assert sorted(line["custom_id"] for line in told) == sorted(f"n{number}" for number in range(NUM_LINES))
    assert all(line["response"]["body"]["usage"]["completion_tokens"] == 30 for line in told)
