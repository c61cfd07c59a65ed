"""A second gateway as a process of its own, killed in mid-stream: its requests are gone, the others go on."""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import CallFailed, Client
from core.commands import Command, Tell
from core.events import Dropped, SchedulerEvent
from core.ids import NodeId, node_name
from core.membership import GatewayLost
from core.timers import Timers
from engine.embedded.prompts import code_word_prompt
from scheduler.scheduler import Scheduler
from tests.service.running import GUARD_S, Running, running

pytestmark = pytest.mark.slow

LONG = 1500
"""Tokens of an answer that is still being written, on any machine, when a kill has come to its gateway."""

QUICK = Timers(heartbeat_s=0.2, progress_s=0.5, claim_s=0.5, suspect_s=1.0, dead_s=2.0)
"""A gateway is missed before the nodes have written what it asked for."""


class Second:
    """`penstock gateway` in a process of its own. Owns: the process."""

    def __init__(self, head: Running, token_file: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "cluster.cli", "gateway", "--join", head.service.cluster.address]
        command += ["--cluster-token-file", str(token_file), "--grpc-port", "0", "--port", "0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.name, self.address = self._read(r"(gateway-\w+) serves \S+ on (\S+); head")
        (self.url,) = self._read(r"OpenAI: (\S+)/v1")

    def _read(self, pattern: str) -> tuple[str, ...]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found.groups()
        assert self.process.stderr is not None
        raise AssertionError(self.process.stderr.read())

    def end(self, number: int = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        self.process.communicate(timeout=GUARD_S)
        return self.process.returncode

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=GUARD_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    token_file = tmp_path_factory.mktemp("cluster") / "token"
    flags = ("--prefill", "1", "--decode", "1", "--cluster-token-file", str(token_file))
    with running(*flags, timers=QUICK) as service:
        yield service


@pytest.fixture
def token_file(head: Running) -> Path:
    path = head.service.config.live.token_file
    assert path is not None
    return path


@contextlib.contextmanager
def second(head: Running, token_file: Path, *flags: str) -> Iterator[Second]:
    gateway = Second(head, token_file, *flags)
    try:
        yield gateway
    finally:
        gateway.end(signal.SIGKILL)
        head.until(lambda: not head.call(_gateways(head)))


async def _gateways(head: Running) -> tuple[str, ...]:
    return head.service.cluster.gateways


def question(tenant: str, max_tokens: int) -> pb.GenerateRequest:
    text, _ = code_word_prompt(5, 400)
    sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0.9, seed=42, ignore_eos=True)
    return pb.GenerateRequest(text=text, chat=True, sampling=sampling, tenant=tenant)


def stream(address: str, request: pb.GenerateRequest, begun: threading.Event, number: int = 10) -> list[int]:
    """The answer's tokens; `begun` is set when so many have come."""
    tokens: list[int] = []
    with Client(address) as client:
        for response in client.generate(request, GUARD_S):
            tokens += response.token_ids
            if len(tokens) >= number:
                begun.set()
    return tokens


def test_a_gateway_killed_in_mid_stream_takes_its_own_requests_with_it_and_no_others(
    head: Running, token_file: Path
) -> None:
    calm, ear = head.ask(question("calm", LONG)).token_ids, Ear(head.service.scheduler)
    with second(head, token_file) as survivor, contextlib.closing(ear), ThreadPoolExecutor(4) as pool:
        victim = Second(head, token_file)
        far, near, gone = threading.Event(), threading.Event(), threading.Event()
        stays = pool.submit(stream, survivor.address, question("far", LONG), far)
        beside = pool.submit(stream, head.address, question("near", LONG), near)
        lost = [pool.submit(stream, victim.address, question(f"gone-{i}", LONG), gone) for i in range(2)]
        assert all(event.wait(GUARD_S) for event in (far, near, gone))
        assert head.call(_live(head)) == 4
        assert victim.end(signal.SIGKILL) == -signal.SIGKILL
        assert not stays.done() and not beside.done(), "the kill came too late to hit anything"
        for each in lost:
            with pytest.raises(CallFailed):
                each.result()
        head.until(lambda: victim.name in ear.dropped)
        assert ear.dropped[victim.name].count("decode-0") == 2, "both were still being written"
        assert tuple(stays.result()) == tuple(beside.result()) == calm
        head.until_idle(2)
        again = stream(survivor.address, question("again", 24), threading.Event())
        assert tuple(again) == calm[:24]


class Ear:
    """Hears what the scheduler says when a gateway is lost. Owns: the nodes that were told to drop an attempt."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.dropped: dict[str, list[str]] = {}
        self._scheduler, self._handle = scheduler, scheduler.handle
        scheduler.handle = self.listen  # type: ignore[method-assign]

    def listen(self, event: SchedulerEvent, now: float) -> list[Command]:
        commands = self._handle(event, now)
        if isinstance(event, GatewayLost):
            told = [command for command in commands if isinstance(command, Tell)]
            names = [node_name(NodeId(each.to)) for each in told if isinstance(each.event, Dropped)]
            self.dropped[event.gateway] = names
        return commands

    def close(self) -> None:
        self._scheduler.handle = self._handle  # type: ignore[method-assign]


async def _live(head: Running) -> int:
    return head.service.scheduler.num_live


def test_the_openai_client_and_get_cluster_work_at_a_second_gateway(head: Running, token_file: Path) -> None:
    with second(head, token_file) as gateway:
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        asked = {"model": "penstock-embedded", "prompt": "A penstock", "max_tokens": 12, "temperature": 0}
        beside = OpenAI(base_url=f"{head.service.http.url}/v1", api_key="none", max_retries=0)  # type: ignore[union-attr]
        assert client.completions.create(**asked).choices[0].text == beside.completions.create(**asked).choices[0].text  # type: ignore[call-overload]
        chunks = [chunk.choices[0].text for chunk in client.completions.create(stream=True, **asked)]  # type: ignore[call-overload]
        assert len(chunks) > 3
        with Client(gateway.address) as far, Client(head.address) as near:
            shown, own = far.get_cluster(GUARD_S), near.get_cluster(GUARD_S)
        assert [node.id for node in shown.nodes] == [node.id for node in own.nodes]
        assert all(node.blocks.capacity > 0 for node in shown.nodes)
        assert gateway.status("/ready") == gateway.status("/health") == 200
        with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=GUARD_S) as page:
            assert "penstock_requests" in page.read().decode()
        head.until_idle(2)


def test_a_gateway_told_to_stop_finishes_what_is_open_and_leaves(head: Running, token_file: Path) -> None:
    with second(head, token_file) as gateway, ThreadPoolExecutor(1) as pool:
        begun = threading.Event()
        answer = pool.submit(stream, gateway.address, question("last", 300), begun)
        assert begun.wait(GUARD_S)
        assert gateway.end(signal.SIGTERM) == 0
        assert len(answer.result()) == 300
        head.until_idle(2)


def test_without_its_head_a_gateway_fails_what_is_open_is_not_ready_and_serves_for_the_next_one(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    flags = ("--prefill", "1", "--decode", "1", "--cluster-token-file", str(token_file))
    with running(*flags) as head:
        gateway = Second(head, token_file)
        pool, begun = ThreadPoolExecutor(1), threading.Event()
        answer = pool.submit(stream, gateway.address, question("cut", LONG), begun)
        assert begun.wait(GUARD_S)
        waits, place = head.until, head.service.cluster.address
        calm = head.ask(question("calm", 24)).token_ids
    try:
        with pytest.raises(CallFailed) as found:
            answer.result(GUARD_S)
        assert found.value.code == "worker_lost"
        assert "lost its cluster" in found.value.message
        waits(lambda: gateway.status("/ready") == 503)
        assert gateway.status("/health") == 200
        body = json.dumps({"prompt": "hello", "max_tokens": 2}).encode()
        asked = urllib.request.Request(f"{gateway.url}/v1/completions", body, {"content-type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=GUARD_S)
        assert refused.value.code == 503
        assert json.loads(refused.value.read())["error"]["code"] == "unavailable"
        with running(*flags, "--cluster-port", place.rpartition(":")[2]) as head:
            assert head.service.cluster.address == place
            head.until(lambda: gateway.status("/ready") == 200)
            assert tuple(stream(gateway.address, question("next", 24), threading.Event())) == calm
            head.until_idle(2)
    finally:
        pool.shutdown()
        assert gateway.end() == 0


def test_the_token_is_in_its_file_alone(head: Running, token_file: Path) -> None:
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    token = token_file.read_text().strip().encode()
    with second(head, token_file) as gateway:
        for pid in (gateway.process.pid, os.getpid(), *(node.pid for node in head.nodes().values())):
            for file in ("cmdline", "environ"):
                assert token not in Path(f"/proc/{pid}/{file}").read_bytes()
        assert token not in "".join(gateway.lines).encode()
    flags = "--cluster-token-file - --grpc-port 70000"
    read = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "gateway", *f"--join {head.service.cluster.address} {flags}".split()],
        input=token + b"\n",
        capture_output=True,
        check=False,
    )
    assert read.returncode == 2
    assert b"--grpc-port must be from 0 to 65535" in read.stderr and token not in read.stderr
