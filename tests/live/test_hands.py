"""The threads that do a node's work when something goes wrong with a wait, a device or a thread."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import Queue
from typing import cast

import pytest

from cluster.live import hands
from cluster.live.hands import Fetches, Runner, Steps
from cluster.live.handshake import ClusterToken
from cluster.live.host import Host, Machine
from cluster.live.neighbours import Neighbours
from core.commands import Command, FetchKV, RunStep
from core.events import KVArrived, NodeEvent, StepDone, StepFailed, Tick
from core.ids import AttemptId, NodeId
from core.kv import FetchTarget, KVHandle
from core.step import StepPlan, StepResult
from core.timers import Timers
from kv_transfer.links import Links
from tests.live.parrot import BLOCKS, DoneStep, build_parrot, layout_id
from tests.live.posts import FAST
from tests.live.test_host import order

GUARD_S = 30.0
ALONE = replace(FAST, dead_s=600.0)
"""For a host that has no head: it waits for it to the end."""


def thread_named(name: str) -> threading.Thread:
    return next(thread for thread in threading.enumerate() if thread.name == name)


def keep_off(thread: threading.Thread, seconds: float) -> None:
    """Interrupts what a thread waits in, and keeps the interpreter from it for so long, as a busy machine may."""
    assert thread.ident is not None
    handler, interval = signal.signal(signal.SIGUSR1, lambda *_: None), sys.getswitchinterval()
    sys.setswitchinterval(600.0)
    try:
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
    finally:
        sys.setswitchinterval(interval)
        signal.signal(signal.SIGUSR1, handler)


class _Device:
    """An executor of a device that is asked whether its step is done, and answers with `is_done`."""

    def __init__(self, is_done: Callable[[], bool], error: str = "") -> None:
        self.is_done = is_done
        self.error = error
        self.asked = threading.Event()

    def launch(self, plan: StepPlan) -> "_OnDevice":
        return _OnDevice(self, plan.step)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class _OnDevice:
    device: _Device
    step: int

    @property
    def is_done(self) -> bool:
        self.device.asked.set()
        return self.device.is_done()

    def collect(self) -> StepResult:
        if self.device.error:
            raise RuntimeError(self.device.error)
        return StepResult(self.step, (), (), (), (), 0.0)


def test_a_step_is_collected_where_the_wait_for_the_next_plan_was_resumed_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hands, "PLAN_AHEAD_S", 0.5)
    device, answers = _Device(lambda: False), Queue[NodeEvent]()
    steps = Steps(device, answers.put)
    steps.run(StepPlan(0, (), ()))
    assert device.asked.wait(GUARD_S)
    time.sleep(0.05)  # into the wait
    keep_off(thread_named("steps"), 0.6)
    assert isinstance(answers.get(timeout=GUARD_S), StepDone)
    steps.stop()


class _Ticks:
    """A machine that counts its ticks."""

    def __init__(self) -> None:
        self.ticked: Queue[float] = Queue()

    def handle(self, event: NodeEvent, now: float) -> Sequence[Command]:
        if isinstance(event, Tick):
            self.ticked.put(now)
        return ()


def host_of(machine: Machine | None = None, executor: Runner | None = None, timers: Timers = ALONE) -> Host:
    """A parrot's host, but for what is given, without a head."""
    asked = order("127.0.0.1:1", ClusterToken.mint(), timers)
    parts = build_parrot(asked, lambda phase, share: None)
    return Host(replace(parts, machine=machine or parts.machine, executor=executor or parts.executor), asked)


def test_a_node_goes_on_ticking_where_its_wait_for_events_was_resumed_after_its_time() -> None:
    machine = _Ticks()
    host = host_of(machine, timers=replace(ALONE, tick_s=0.5))
    host.start()
    machine.ticked.get(timeout=GUARD_S)
    time.sleep(0.05)  # into the wait for the next
    keep_off(thread_named("machine"), 0.6)
    machine.ticked.get(timeout=GUARD_S)
    host.stop()


def test_a_device_that_cannot_say_whether_it_is_done_fails_its_step_and_no_other() -> None:
    def broken() -> bool:
        raise RuntimeError("an illegal memory access")

    device, answers = _Device(broken, error="an illegal memory access"), Queue[NodeEvent]()
    steps = Steps(device, answers.put)
    steps.run(StepPlan(0, (), ()))
    assert answers.get(timeout=GUARD_S) == StepFailed(0, "RuntimeError: an illegal memory access")
    device.error = ""
    steps.run(StepPlan(1, (), ()))
    assert isinstance(answers.get(timeout=GUARD_S), StepDone)
    assert steps.is_alive
    steps.stop()
    assert not steps.is_alive


def why_over(host: Host) -> str:
    """Waits until a host is over, but not for ever."""
    told = Queue[str]()
    threading.Thread(target=lambda: told.put(host.wait()), daemon=True).start()
    return told.get(timeout=GUARD_S)


class _RunsOnce:
    """A machine that asks for one step at its first tick."""

    def __init__(self) -> None:
        self.has_asked = False

    def handle(self, event: NodeEvent, now: float) -> Sequence[Command]:
        if self.has_asked:
            return ()
        self.has_asked = True
        return (RunStep(StepPlan(0, (), ())),)


class _Ends:
    """An executor that ends the thread it is called in."""

    def launch(self, plan: StepPlan) -> DoneStep:
        raise SystemExit

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_node_is_over_at_once_when_the_thread_that_runs_its_steps_has_ended() -> None:
    host = host_of(_RunsOnce(), _Ends())
    host.start()
    assert why_over(host) == "an invariant is broken: the thread that runs steps has ended"
    host.stop()


class _Endless:
    """An executor whose steps run until it is told."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def launch(self, plan: StepPlan) -> DoneStep:
        self.may_end.wait(GUARD_S)
        return DoneStep(StepResult(plan.step, (), (), (), (), 0.0))

    def close(self) -> None:
        """Nothing is held."""


def test_a_node_is_over_when_a_step_does_not_end() -> None:
    executor = _Endless()
    host = host_of(_RunsOnce(), executor, replace(ALONE, step_s=0.1))
    host.start()
    assert "a step has run for" in why_over(host)
    executor.may_end.set()
    host.stop()


class _Reached:
    """Neighbours of which one cannot be prepared for, for a reason that nobody thought of; and their links."""

    def reach(self, node: NodeId) -> None:
        if node == "odd@1":
            raise ValueError("a reason that nobody thought of")

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        return 1


def test_a_neighbour_that_cannot_be_prepared_for_costs_no_thread() -> None:
    world, answers = _Reached(), Queue[NodeEvent]()
    fetches = Fetches(cast(Links, world), cast(Neighbours, world), answers.put, num_threads=1)
    fetches.prepare(NodeId("odd@1"))
    handle = KVHandle(AttemptId("r#0"), NodeId("even@1"), layout_id(), 0, BLOCKS, (0, 0), (b"", b""))
    fetches.fetch(FetchKV(AttemptId("r#0"), 1, handle, FetchTarget(BLOCKS, (7, 7))))
    assert answers.get(timeout=GUARD_S) == KVArrived(AttemptId("r#0"), 1)
    fetches.stop()
