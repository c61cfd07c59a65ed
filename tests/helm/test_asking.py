"""What `helm test` asks over HTTP, against a server that answers as it is told."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.helm.charts import named, render, values_of

ADDRESS = "http://rel-penstock:8000"


class Server(HTTPServer):
    """Owns: what it was asked, and the number of tokens that it says there were."""

    num_tokens = 8

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None, object]] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.asked.append((self.path, self.headers["authorization"], body["prompt"]))
        text = json.dumps({"usage": {"completion_tokens": server.num_tokens}, "choices": [{"text": " there was"}]})
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, key: str = "") -> subprocess.CompletedProcess[str]:
    """The second container's command, at this server instead of the Service."""
    (_, http) = named(render(values_of("cpu")), "Pod", "rel-penstock-test")["spec"]["containers"]
    assert http["command"] == ["python", "-c"] and ADDRESS in http["args"][0]
    code = http["args"][0].replace(ADDRESS, f"http://127.0.0.1:{server.server_address[1]}")
    environment = os.environ | ({"PENSTOCK_API_KEY": key} if key else {})
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_it_has_tokens_generated_and_prints_them(server: Server) -> None:
    done = ask(server)
    assert (done.returncode, done.stdout) == (0, " there was\n"), done.stderr
    assert server.asked == [("/v1/completions", None, "Once upon a time")]


def test_a_key_from_a_file_with_a_line_end_is_shown_without_it(server: Server) -> None:
    assert ask(server, "secret\n").returncode == 0
    assert server.asked[0][1] == "Bearer secret"


def test_an_answer_without_tokens_fails_it(server: Server) -> None:
    server.num_tokens = 0
    assert ask(server).returncode != 0
