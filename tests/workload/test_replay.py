"""A record of a scheduler, replayed: nothing differs for the same scheduler, and what differs for another is named."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgpack
import pytest

from cluster.cli import main
from cluster.recording import Recorder, Setup, bare, read_record
from core.commands import Command
from core.events import NodeJoined, RequestArrived, SchedulerEvent, StreamEnded, Submitted, Tick
from core.goodput import Outcome
from core.ids import GatewayId, LayoutId, NodeId, RequestId
from core.kv import KVLayout
from core.mix import NodeSpec, mix_of
from core.request import SLO, AnswerFormat, FormatKind, Prompt, Request, SamplingParams, pack_tokens
from scheduler.config import SchedulerConfig
from scheduler.controller import ControllerConfig

SETUP = Setup("least_loaded", SchedulerConfig(), None)
KV = KVLayout(1, 1, 8, 16, "float32")


def node(name: str, role: str) -> NodeJoined:
    spec = NodeSpec(LayoutId("w.g"), KV, 1000, 4096, mix_of(role, 512, 16))
    return NodeJoined(NodeId(f"{name}@1"), spec)


def arrival(name: str) -> RequestArrived:
    prompt = Prompt(3, (), b"tail")
    sampling = SamplingParams(8, format=AnswerFormat(FormatKind.REGEX, "secret"))
    request = Request(RequestId(name), prompt, pack_tokens([7, 8, 9]), sampling, SLO(1.0, 0.1))
    return RequestArrived(request, GatewayId("gateway-1"))


EVENTS: list[tuple[float, SchedulerEvent]] = [
    (0.0, node("a", "prefill")),
    (0.1, node("b", "decode")),
    (0.2, arrival("r1")),
    (0.25, Tick()),
    (0.3, arrival("r2")),
    (0.9, StreamEnded(RequestId("r1"), Outcome.FINISHED)),
    (1.0, Tick()),
]


def recorded(path: Path, setup: Setup = SETUP, max_bytes: int = 1 << 20) -> Path:
    recorder = Recorder(setup.scheduler(), setup, path, max_bytes)
    for now, event in EVENTS:
        recorder.handle(event, now)
    recorder.close()
    return path


@pytest.mark.parametrize("setup", [SETUP, Setup("goodput", SchedulerConfig(max_retries=1), ControllerConfig())])
def test_the_same_scheduler_says_the_same(setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "record", setup)
    assert read_record(path)[0] == setup
    assert main(["replay", str(path)]) == 0
    said = capsys.readouterr().out
    assert "7 events" in said and "all commands are the recorded ones" in said


def test_a_record_holds_no_token_of_a_client(tmp_path: Path) -> None:
    path = recorded(tmp_path / "record")
    assert pack_tokens([7, 8, 9]) not in path.read_bytes()
    assert b"secret" not in path.read_bytes()
    submitted = [
        told.event for entry in read_record(path)[1] for told in entry.told if isinstance(told.event, Submitted)
    ]
    assert len(submitted) == 2 and all(not each.request.token_ids for each in submitted)
    assert cast(RequestArrived, bare(arrival("r"))).request.prompt == arrival("r").request.prompt


class Forgetful:
    """A scheduler that keeps the last of its commands to itself."""

    def __init__(self) -> None:
        self._real = SETUP.scheduler()

    def handle(self, event: SchedulerEvent, now: float) -> Sequence[Command]:
        """Take one event."""
        return self._real.handle(event, now)[:-1]


def test_a_scheduler_that_decides_otherwise_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = tmp_path / "record", tmp_path / "report.json"
    recorder = Recorder(Forgetful(), SETUP, path, 1 << 20)
    for now, event in EVENTS:
        recorder.handle(event, now)
    recorder.close()
    assert main(["replay", str(path), "--json", str(report)]) == 1
    said = capsys.readouterr().out
    assert "event 3 at 0.200 s: RequestArrived" in said and "  + tell a@1 Submitted" in said
    assert "answered otherwise" in said and json.loads(report.read_text())["figures"]["differences"] >= 2


def test_a_record_ends_at_its_size_and_the_scheduler_goes_on(tmp_path: Path) -> None:
    path = recorded(tmp_path / "record", max_bytes=400)
    assert 0 < len(list(read_record(path)[1])) < len(EVENTS)


def test_a_record_that_was_cut_off_is_read_to_there(tmp_path: Path) -> None:
    path = recorded(tmp_path / "record")
    path.write_bytes(path.read_bytes()[:-5])
    assert len(list(read_record(path)[1])) == len(EVENTS) - 1


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "is no record"),
        (b"\xc1", "is no record"),
        (b"hello", "is no record"),
        (msgpack.packb(["penstock scheduler record", 99, b""]), "version 99"),
        (msgpack.packb(["penstock scheduler record", 1, b"\x01"]), "another build"),
    ],
)
def test_a_file_that_is_no_record_is_one_message(
    data: bytes, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record"
    path.write_bytes(data)
    assert main(["replay", str(path)]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("penstock: error") == 1


def test_an_entry_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "record")
    path.write_bytes(path.read_bytes() + msgpack.packb([1.0, b"\x00", []]))
    assert main(["replay", str(path)]) == 2
    assert "entry 8" in capsys.readouterr().err
