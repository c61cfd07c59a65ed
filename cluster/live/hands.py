"""The threads that do a node's work: one runs steps in the order asked, two fetch KV. Each answers into the inbox."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from cluster.live.neighbours import Neighbours
from core.commands import FetchKV
from core.errors import Corrupt, TransferError
from core.events import AttemptEnd, KVArrived, KVFailed, NodeEvent, StepDone, StepFailed
from core.ids import NodeId
from core.step import StepPlan, StepResult
from kv_transfer.transport import Transport

LOG = logging.getLogger("penstock.node")
Answer = Callable[[NodeEvent], None]


class Runner(Protocol):
    """What runs steps."""

    def run(self, plan: StepPlan) -> StepResult:
        """One step, in the order of the calls."""

    def close(self) -> None:
        """Lets go of the slab."""


class Steps:
    """Runs plans, one after the other.

    Owns: the thread `steps`, and with it the executor.
    """

    def __init__(self, executor: Runner, answer: Answer) -> None:
        self._executor = executor
        self._answer = answer
        self._plans: SimpleQueue[StepPlan | None] = SimpleQueue()
        self._began: float | None = None
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    def run(self, plan: StepPlan) -> None:
        """Queues a plan; answered by `StepDone` or `StepFailed`."""
        self._plans.put(plan)

    def running_s(self) -> float:
        """How long the step that runs now has been running; 0 where none does."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def stop(self) -> None:
        """Waits for the plans that are queued, and ends the thread."""
        self._plans.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (plan := self._plans.get()) is not None:
            self._began = time.monotonic()
            event = self._step(plan)
            self._began = None
            self._answer(event)

    def _step(self, plan: StepPlan) -> NodeEvent:
        try:
            return StepDone(self._executor.run(plan))
        except Exception as error:
            LOG.exception("step %d failed", plan.step)
            return StepFailed(plan.step, f"{type(error).__name__}: {error}")


@dataclass(slots=True)
class TransferCounts:
    """What the fetches came to; counters only rise."""

    num_fetches: int = 0
    num_failed: int = 0
    num_bytes: int = 0


class Fetches:
    """Runs fetches, a few at a time.

    Owns: the threads `fetch-0` and on, and the counts.
    """

    def __init__(self, transport: Transport, neighbours: Neighbours, answer: Answer, num_threads: int = 2) -> None:
        self._transport = transport
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
            return TransferCounts(self._counts.num_fetches, self._counts.num_failed, self._counts.num_bytes)

    def stop(self) -> None:
        """Waits for the fetches that run, and ends the threads. Close the transport first, so that none can hang."""
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
        except TransferError as error:
            LOG.warning("the pool of %s cannot be read yet: %s", node, error)

    def _fetch(self, command: FetchKV) -> NodeEvent:
        try:
            self._neighbours.reach(command.handle.owner)
            moved = self._transport.fetch(command.handle, command.into)
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
        with self._lock:
            self._counts.num_failed += 1
        LOG.warning("fetch %d of %s: %s: %s", command.fetch, command.attempt, type(error).__name__, error)
        return KVFailed(command.attempt, command.fetch, end, str(error))
