"""The parts of the live shell that need no process."""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest

from cluster.api import generate
from cluster.live import supervisor
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from cluster.live.frames import MAX_FRAME_BYTES, read_frame, write_frame
from cluster.live.hands import Steps
from cluster.live.last_events import LastEvents
from cluster.live.orders import own_address_towards
from core.errors import StepFailed
from core.events import NodeEvent, RequestArrived, StepDone, Tick, TokensEmitted
from core.events import StepFailed as StepFailedEvent
from core.ids import AttemptId, GatewayId
from core.step import StepPlan, StepResult
from tests.live.parrot import DoneStep, question


def test_generated_code_is_what_the_protos_give() -> None:
    assert generate.main(["--check"]) == 0


def test_frames_pass_a_pipe_whole() -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb", buffering=0) as reader:
        for message in (b"", b"one", bytes(50_000)):
            write_frame(into, message)
            assert read_frame(reader) == message
        os.write(into, b"\x05\x00\x00\x00cut")
        os.close(into)
        with pytest.raises(EOFError):
            read_frame(reader)


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read() -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb", buffering=0) as reader:
        os.write(into, (MAX_FRAME_BYTES + 1).to_bytes(4, "little"))
        os.close(into)
        with pytest.raises(ValueError, match="limit"):
            read_frame(reader)


def test_the_report_of_a_broken_invariant_holds_the_last_events_and_no_token() -> None:
    last = LastEvents(limit=3)
    last.note("too old", 0.0)
    last.note(RequestArrived(question("r1", (4711,) * 40), GatewayId("g")), 1.0)
    last.note(TokensEmitted((AttemptId("r1#0"),), (0,), (4712,), (None,), (None,)), 2.0)
    last.note(Tick(), 3.0)
    arrived, emitted, tick = last.report()
    assert "id='r1'" in arrived
    assert "token_ids=<160>" in arrived
    assert "r1#0" in emitted
    assert "token_ids=<1>" in emitted
    assert "4711" not in arrived + emitted
    assert "4712" not in arrived + emitted
    assert tick == "3.000000 Tick()"


def test_the_first_death_costs_no_pause_and_too_many_end_the_slot() -> None:
    slot = supervisor._Slot(slots_of(1, 0, 0, 1, 1)[0], ready=None)  # type: ignore[arg-type]
    pauses = [slot.die(float(i)) for i in range(supervisor.MAX_DEATHS)]
    assert pauses == [0.0, 0.5, 1.0, 2.0, None]


def test_deaths_that_are_long_ago_are_forgiven() -> None:
    slot = supervisor._Slot(slots_of(1, 0, 0, 1, 1)[0], ready=None)  # type: ignore[arg-type]
    assert [slot.die(i * (supervisor.DEATHS_WINDOW_S + 1)) for i in range(9)] == [0.0] * 9
    assert slot.num_deaths == 9


def test_slots_are_named_for_what_they_start_as() -> None:
    slots = slots_of(2, 1, 1, 256, 8)
    assert [(slot.name, slot.mix.role) for slot in slots] == [
        ("prefill-0", "prefill"),
        ("prefill-1", "prefill"),
        ("decode-0", "decode"),
        ("aggregated-0", "mixed"),
    ]


def test_all_problems_of_a_configuration_are_told_together(tmp_path: Path) -> None:
    config = LiveConfig(NodeSettings(tmp_path / "none"), slots_of(1, 0, 0, 256, 8), launcher="slurm")
    text = "\n".join(config.problems())
    assert "launcher 'slurm'" in text
    assert "no node accepts decode" in text
    assert "is not a folder" in text


def test_a_node_listens_where_its_head_can_reach_it() -> None:
    assert own_address_towards("127.0.0.1:9") == "127.0.0.1"


class _Stuck:
    """An executor whose step ends when it is let."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def launch(self, plan: StepPlan) -> DoneStep:
        self.may_end.wait(60.0)
        return DoneStep(StepResult(plan.step, (), (), (), (), 0.0))

    def close(self) -> None:
        """Nothing is held."""


def test_a_step_that_does_not_end_can_be_told_from_one_that_does() -> None:
    executor, answers = _Stuck(), SimpleQueue[NodeEvent]()
    steps = Steps(executor, answers.put)
    assert steps.running_s() == 0.0
    steps.run(StepPlan(0, (), ()))
    end = time.monotonic() + 60.0
    while steps.running_s() < 0.05:
        assert time.monotonic() < end
        time.sleep(0.01)
    executor.may_end.set()
    assert isinstance(answers.get(timeout=60.0), StepDone)
    assert steps.running_s() == 0.0
    steps.stop()


class _Device:
    """An executor of a device: launching returns at once, and steps end when they are let."""

    def __init__(self) -> None:
        self.launched: SimpleQueue[int] = SimpleQueue()
        self.may_end = [threading.Event() for _ in range(4)]

    def launch(self, plan: StepPlan) -> "_OnDevice":
        if plan.step == 2:
            raise StepFailed("two")
        self.launched.put(plan.step)
        return _OnDevice(self, plan.step)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class _OnDevice:
    device: _Device
    step: int

    @property
    def is_done(self) -> bool:
        return self.device.may_end[self.step].is_set()

    def collect(self) -> StepResult:
        self.device.may_end[self.step].wait(60.0)
        return StepResult(self.step, (), (), (), (), 0.0)


def test_the_next_step_is_launched_while_a_device_runs_one_and_answers_keep_their_order() -> None:
    device, answers = _Device(), SimpleQueue[NodeEvent]()
    steps = Steps(device, answers.put)
    for step in (0, 1, 2, 3):
        steps.run(StepPlan(step, (), ()))
    assert [device.launched.get(timeout=60.0) for _ in range(2)] == [0, 1], "the second before the first is over"
    assert answers.empty()
    for event in device.may_end:
        event.set()
    done = [answers.get(timeout=60.0) for _ in range(4)]
    assert [each.result.step if isinstance(each, StepDone) else each for each in done] == [
        0,
        1,
        StepFailedEvent(2, "StepFailed: two"),
        3,
    ]
    steps.stop()
