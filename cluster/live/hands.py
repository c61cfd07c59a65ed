"""The threads that do a node's work: one runs steps in the order asked, two fetch KV. Each answers into the inbox."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, Queue, SimpleQueue
from typing import Protocol

from cluster.live.neighbours import Neighbours
from core.commands import FetchKV
from core.errors import Corrupt, TransferError
from core.events import AttemptEnd, KVArrived, KVFailed, NodeEvent, StepDone, StepFailed
from core.ids import NodeId
from core.step import StepPlan, StepResult
from kv_transfer.links import Links

LOG = logging.getLogger("penstock.node")
Answer = Callable[[NodeEvent], None]

MAX_LAUNCHED = 2
PLAN_AHEAD_S = 0.001
"""How long a plan may keep a launched step from being collected: planning takes less, and a step takes longer."""


class Running(Protocol):
    """A step that was handed to the device."""

    @property
    def is_done(self) -> bool:
        """Whether collecting it would not wait."""

    def collect(self) -> StepResult:
        """Waits for it. Steps are collected in the order in which they were launched."""


class Runner(Protocol):
    """What runs steps. A step may be launched before the one before it is collected."""

    def launch(self, plan: StepPlan) -> Running:
        """Hands a step to the device, in the order of the calls."""

    def close(self) -> None:
        """Lets go of the slab."""


class Steps:
    """Runs plans in order. While a device runs one, the next is launched if it comes in time.

    Owns: the thread `steps`, and with it the executor.
    Plans wait in a `Queue`, for the timed `get` of a `SimpleQueue` can wait for ever: where its thread is kept off the
    processor until the time is up, what is left of it is negative, and CPython takes that for no limit.
    """

    def __init__(self, executor: Runner, answer: Answer) -> None:
        self._executor = executor
        self._answer = answer
        self._plans: Queue[StepPlan | None] = Queue()
        self._launched: deque[tuple[int, Running | StepFailed]] = deque()
        self._began: float | None = None
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    def run(self, plan: StepPlan) -> None:
        """Queues a plan; answered by `StepDone` or `StepFailed`."""
        self._plans.put(plan)

    @property
    def is_alive(self) -> bool:
        """Whether plans are still run; False once stopped, or where the thread broke: its plans are never answered."""
        return self._thread.is_alive()

    def running_s(self) -> float:
        """How long the step that runs now has been running; 0 where none does."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def stop(self) -> None:
        """Waits for the plans that are queued, and ends the thread."""
        self._plans.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (plan := self._next_plan()) is not None:
            if not self._launched:
                self._began = time.monotonic()
            self._launched.append((plan.step, self._launch(plan)))
        while self._launched:
            self._collect()

    def _next_plan(self) -> StepPlan | None:
        """The next plan. What runs is collected first, unless a plan comes while the device is busy with it."""
        while self._launched:
            if len(self._launched) < MAX_LAUNCHED and not _is_done(self._launched[0][1]):
                with suppress(Empty):
                    return self._plans.get(timeout=PLAN_AHEAD_S)
            self._collect()
        return self._plans.get()

    def _launch(self, plan: StepPlan) -> Running | StepFailed:
        try:
            return self._executor.launch(plan)
        except Exception as error:
            return _failed_step(plan.step, error)

    def _collect(self) -> None:
        step, running = self._launched.popleft()
        event: NodeEvent
        try:
            event = running if isinstance(running, StepFailed) else StepDone(running.collect())
        except Exception as error:
            event = _failed_step(step, error)
        self._began = time.monotonic() if self._launched else None
        self._answer(event)


def _is_done(running: Running | StepFailed) -> bool:
    """A device that cannot even say whether it is done is asked no further: collecting tells what is wrong."""
    try:
        return isinstance(running, StepFailed) or running.is_done
    except Exception:
        return True


def _failed_step(step: int, error: Exception) -> StepFailed:
    LOG.error("step %d failed", step, exc_info=error)
    return StepFailed(step, f"{type(error).__name__}: {error}")


@dataclass(slots=True)
class TransferCounts:
    """What the fetches came to; counters only rise."""

    num_fetches: int = 0
    num_lost: int = 0
    num_corrupt: int = 0
    num_bytes: int = 0

    @property
    def num_failed(self) -> int:
        """Fetches of which nothing was used: `num_lost` because the peer, the lease or the link was gone."""
        return self.num_lost + self.num_corrupt


class Fetches:
    """Runs fetches, a few at a time.

    Owns: the threads `fetch-0` and on, and the counts.
    """

    def __init__(self, links: Links, neighbours: Neighbours, answer: Answer, num_threads: int = 2) -> None:
        self._links = links
        self._neighbours = neighbours
        self._answer = answer
        self._counts = TransferCounts()
        self._lock = threading.Lock()
        self._asked: SimpleQueue[FetchKV | NodeId | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"fetch-{i}", daemon=True) for i in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def fetch(self, command: FetchKV) -> None:
        """Queues a fetch; answered by exactly one `KVArrived` or `KVFailed`."""
        self._asked.put(command)

    def prepare(self, node: NodeId) -> None:
        """Binds a peer's pool ahead of the first fetch; a failure shows when it is needed."""
        self._asked.put(node)

    def counts(self) -> TransferCounts:
        """A copy of the counts."""
        with self._lock:
            return replace(self._counts)

    def stop(self) -> None:
        """Waits for the fetches that run, and ends the threads. Close the links first, so that none can hang."""
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            if isinstance(asked, FetchKV):
                self._answer(self._fetch(asked))
            else:
                self._prepare(asked)

    def _prepare(self, node: NodeId) -> None:
        try:
            self._neighbours.reach(node)
        except Exception as error:
            is_odd = not isinstance(error, TransferError)
            LOG.warning("the pool of %s cannot be read yet: %s", node, error, exc_info=is_odd)

    def _fetch(self, command: FetchKV) -> NodeEvent:
        try:
            self._neighbours.reach(command.handle.owner)
            moved = self._links.fetch(command.handle, command.into)
        except TransferError as error:
            end = AttemptEnd.KV_CORRUPT if isinstance(error, Corrupt) else AttemptEnd.KV_LOST
            return self._failed(command, end, error)
        except Exception as error:
            LOG.exception("a fetch for %s failed", command.attempt)
            return self._failed(command, AttemptEnd.KV_LOST, error)
        with self._lock:
            self._counts.num_fetches += 1
            self._counts.num_bytes += moved
        return KVArrived(command.attempt, command.fetch)

    def _failed(self, command: FetchKV, end: AttemptEnd, error: Exception) -> NodeEvent:
        is_corrupt = end is AttemptEnd.KV_CORRUPT
        with self._lock:
            self._counts.num_corrupt += is_corrupt
            self._counts.num_lost += not is_corrupt
        LOG.warning("fetch %d of %s: %s: %s", command.fetch, command.attempt, type(error).__name__, error)
        return KVFailed(command.attempt, command.fetch, end, str(error))
