"""Keeps every slot filled: starts nodes, notices their deaths, and starts a new incarnation in their place."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from cluster.live.config import NodeSlot
from cluster.live.head import Head
from cluster.live.launcher import Launcher, RunningNode
from cluster.live.orders import NodeOrder
from core.errors import ConfigError, NodeLost, PenstockError

LOG = logging.getLogger("penstock.supervisor")
MAX_DEATHS = 5
DEATHS_WINDOW_S = 60.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 8.0

OnProgress = Callable[[str, str, float], None]
"""Called with a slot's name, the phase of its start, and the share done."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """One slot for people: `phase` is what its start is doing, `running`, or `given up`."""

    name: str
    phase: str
    num_deaths: int


@dataclass(slots=True)
class _Slot:
    slot: NodeSlot
    ready: asyncio.Future[None]
    phase: str = "waiting"
    num_deaths: int = 0
    recent: deque[float] = field(default_factory=deque)

    def die(self, now: float) -> float | None:
        """Counts a death; the pause before the next start, or None when there were too many."""
        self.num_deaths += 1
        self.recent.append(now)
        while self.recent[0] < now - DEATHS_WINDOW_S:
            self.recent.popleft()
        if len(self.recent) >= MAX_DEATHS:
            return None
        return 0.0 if len(self.recent) == 1 else min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (len(self.recent) - 1))


class Supervisor:
    """Fills the slots of a cluster.

    Owns: a task for each slot, and through it the node that runs there.
    """

    def __init__(
        self, launcher: Launcher, head: Head, order: Callable[[NodeSlot], NodeOrder], on_progress: OnProgress
    ) -> None:
        self._launcher = launcher
        self._head = head
        self._order = order
        self._on_progress = on_progress
        self._slots: dict[str, _Slot] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, slots: Iterable[NodeSlot]) -> None:
        """Starts all nodes at once; returns when each has joined. Raises what kept the first incarnations from it."""
        loop = asyncio.get_running_loop()
        self._slots = {slot.name: _Slot(slot, loop.create_future()) for slot in slots}
        self._tasks = {name: asyncio.create_task(self._keep(slot)) for name, slot in self._slots.items()}
        ends = await asyncio.gather(*(slot.ready for slot in self._slots.values()), return_exceptions=True)
        problems = [problem for end in ends if isinstance(end, ConfigError) for problem in end.problems]
        if problems:
            raise ConfigError(problems)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    def add(self, slot: NodeSlot) -> None:
        """Fills one more slot, without waiting for it. A node that cannot be started there is tried again."""
        ready = asyncio.get_running_loop().create_future()
        ready.set_result(None)  # nobody waits for it: what keeps it from starting counts as a death
        added = self._slots[slot.name] = _Slot(slot, ready)
        self._tasks[slot.name] = asyncio.create_task(self._keep(added))

    async def remove(self, name: str) -> None:
        """Ends a slot and whatever runs or starts in it; returns when nothing is left of that. Twice is fine."""
        task = self._tasks.pop(name, None)
        if task is not None:
            del self._slots[name]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stop(self) -> None:
        """Ends all nodes; returns when nothing is left of them. Twice is fine."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def slots(self) -> tuple[SlotState, ...]:
        """Every slot now."""
        return tuple(SlotState(name, slot.phase, slot.num_deaths) for name, slot in self._slots.items())

    async def _keep(self, slot: _Slot) -> None:
        """One incarnation after the other. The first must come up; a later one that does not has died."""
        while True:
            try:
                await self._live(slot)
            except Exception as error:
                if not slot.ready.done():
                    slot.phase = "failed"
                    slot.ready.set_exception(error)
                    return
                LOG.error("%s: %s", slot.slot.name, error, exc_info=not isinstance(error, PenstockError))
            pause = slot.die(time.monotonic())
            if pause is None:
                slot.phase = "given up"
                LOG.error("%s died %d times in %g s: given up", slot.slot.name, MAX_DEATHS, DEATHS_WINDOW_S)
                return
            slot.phase = "waiting"
            await asyncio.sleep(pause)

    async def _live(self, slot: _Slot) -> None:
        """One incarnation, until nothing is left of it. Raises ConfigError and NodeLost where it never joins."""
        progress = partial(self._progress, slot)
        running = await self._launcher.start(self._order(slot.slot), progress)
        node = running.started.node
        membership = self._head.admit(slot.slot.name, running)
        membership.joined.add_done_callback(partial(self._on_joined, slot, running))
        watch = asyncio.create_task(self._watch(running))
        try:
            await asyncio.wait({membership.lost})
            LOG.warning("%s is lost: %s", node, membership.lost.result())
        finally:
            watch.cancel()
            self._head.remove(node, "stopped")
            await asyncio.shield(running.stop())
        if not slot.ready.done():
            raise NodeLost(f"{node} was lost before it joined: {membership.lost.result()}")

    async def _watch(self, running: RunningNode) -> None:
        self._head.remove(running.started.node, await running.exited())

    def _on_joined(self, slot: _Slot, running: RunningNode, joined: asyncio.Future[None]) -> None:
        if joined.cancelled():
            return
        started, actor = running.started, f", actor {running.actor_id}" if running.actor_id else ""
        LOG.info("%s runs as %s (process %d%s)", slot.slot.name, started.node, started.pid, actor)
        slot.phase = "running"
        if not slot.ready.done():
            slot.ready.set_result(None)

    def _progress(self, slot: _Slot, phase: str, share: float) -> None:
        slot.phase = phase
        self._on_progress(slot.slot.name, phase, share)
