"""A cluster whose nodes are Ray actors: the same tokens, the same deaths, and nothing of Ray left behind."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cluster.live.config import NodeSettings, RaySettings, slots_of
from cluster.live.ray_actors import RayLauncher
from core.errors import ConfigError
from tests.live.posts import until
from tests.live.test_model_cluster import expected, running, settings

__all__ = ["expected", "settings"]

pytestmark = pytest.mark.ray


def test_two_actors_say_what_one_executor_says_and_a_killed_one_costs_no_request(
    settings: NodeSettings, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def walk() -> None:
        async with running(settings, slots_of(1, 1, 0, 32, 8), "ray") as here:
            here.open("before")
            assert await here.tokens("before") == expected
            before = {node.slot: node for node in here.cluster.state().nodes}
            assert len({node.pid for node in before.values()} | {os.getpid()}) == 3
            assert len({node.actor_id for node in before.values()} - {""}) == 2
            for i in range(4):
                here.open(f"r{i}")
            await until(lambda: "r0" in here.door.tokens)
            os.kill(before["decode-0"].pid, signal.SIGKILL)
            for i in range(4):
                assert await here.tokens(f"r{i}") == expected
            await until(lambda: here.pids().get("decode-0", before["decode-0"].pid) != before["decode-0"].pid)
            after = {node.slot: node for node in here.cluster.state().nodes}
            assert after["decode-0"].node != before["decode-0"].node
            assert after["prefill-0"].node == before["prefill-0"].node

    monkeypatch.setenv("HOME", str(tmp_path))
    before = settings_of_ray()
    asyncio.run(walk())
    written = [path for path in tmp_path.glob(".cache/*") if path.name != "penstock"]  # our own compiled kernels
    written += [path for path in tmp_path.iterdir() if path.name != ".cache"]
    assert written == [], "Ray wrote into the home folder"
    assert settings_of_ray() == before


def settings_of_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_AUTH", "RAY_USAGE"))}


def test_rays_client_protocol_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="ray://"):
        RayLauncher(RaySettings(address="ray://head:10001"), ())


def test_nodes_that_get_no_place_in_time_are_refused_by_what_they_ask() -> None:
    async def walk() -> None:
        launcher = RayLauncher(RaySettings(start_timeout_s=0.0), slots_of(1, 1, 0, 32, 8))
        try:
            with pytest.raises(ConfigError, match=r"no place for 2 nodes of 0\.5 CPUs on one host"):
                await launcher.open()
        finally:
            await launcher.close()

    asyncio.run(walk())
