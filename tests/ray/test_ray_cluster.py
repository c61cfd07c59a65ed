"""The same cluster of small machines, its nodes as Ray actors."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.live.config import RaySettings, slots_of
from cluster.live.ray_actors import RayLauncher
from core.goodput import Outcome
from tests.live.aviary import Aviary, exists, parrots
from tests.live.parrot import build_parrot
from tests.live.posts import until

pytestmark = pytest.mark.ray


@asynccontextmanager
async def running() -> AsyncIterator[Aviary]:
    """One prefill and one decode parrot as actors of a Ray of their own."""
    slots = slots_of(1, 1, 0, 256, 8)
    aviary = parrots(slots, RayLauncher(RaySettings(), slots, build_parrot))
    await aviary.cluster.start()
    pids = [node.pid for node in aviary.nodes.values()]
    try:
        yield aviary
        pids += [node.pid for node in aviary.nodes.values()]
    finally:
        await aviary.cluster.stop()
    await until(lambda: not any(exists(pid) for pid in pids))


def test_a_request_walks_through_two_actors_and_a_killed_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def walk() -> None:
        async with running() as aviary:
            assert await aviary.ask("before", 5, 6, 7) is Outcome.FINISHED
            before = aviary.nodes
            assert len({node.pid for node in before.values()} | {os.getpid()}) == 3
            assert len({node.actor_id for node in before.values()} - {""}) == 2
            os.kill(before["decode-0"].pid, signal.SIGKILL)
            await until(lambda: bool(aviary.scheduler.lost))
            await until(lambda: len(aviary.scheduler.nodes) == 2)
            after = aviary.nodes
            assert after["decode-0"].node != before["decode-0"].node
            assert after["prefill-0"].node == before["prefill-0"].node
            assert await aviary.ask("after", 3, 4) is Outcome.FINISHED

    monkeypatch.setenv("HOME", str(tmp_path))
    asyncio.run(walk())
    assert list(tmp_path.iterdir()) == [], "Ray wrote into the home folder"
