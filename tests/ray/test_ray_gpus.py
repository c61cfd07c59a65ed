"""Nodes on GPUs as Ray actors: each asks for its share of one. Ray counts them; the KV lies on a stand-in device."""

import asyncio
import os

import pytest

from cluster.live.build import Progress
from cluster.live.config import LiveConfig, NodeSettings, RaySettings, slots_of
from cluster.live.gpus import Gpu, placed
from cluster.live.host import NodeParts
from cluster.live.orders import NodeOrder
from cluster.live.ray_actors import RayLauncher
from core.errors import ConfigError
from tests.live.posts import until
from tests.live.stand_in_node import build_on_stand_in
from tests.live.test_device_cluster import answers, moved, on_gpus, ways
from tests.live.test_model_cluster import expected, running, settings

__all__ = ["expected", "settings"]

pytestmark = pytest.mark.ray

CARD = Gpu("a card", 1 << 30, 1 << 30)


def build_where_ray_shows_one_gpu(order: NodeOrder, progress: Progress) -> NodeParts:
    """Refuses an actor that was shown no GPU, or several; fails where the order names another than its first one."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown != "0" or order.settings.device != "cuda":
        raise ConfigError([f"shown GPUs {shown!r} and told {order.settings.device!r}"])
    return build_on_stand_in(order, progress)


def test_two_actors_share_a_gpu_and_hand_over_within_its_memory(settings: NodeSettings, expected: list[int]) -> None:
    async def walk() -> None:
        local = on_gpus(settings, 1)
        live = placed(LiveConfig(local.node, slots_of(1, 1, 0, 32, 8), "ray"), [CARD])
        launcher = RayLauncher(live.ray, live.slots, build_where_ray_shows_one_gpu)
        async with running(live.node, live.slots, by=launcher) as here:
            await answers(here, expected)
            await until(lambda: moved(here.cluster.state().nodes) > 0)
            assert ways(here.cluster.state().nodes) == {"cuda_ipc"}
            assert all(node.actor_id for node in here.cluster.state().nodes)

    asyncio.run(walk())


def test_a_ray_without_gpus_is_refused_by_what_it_has() -> None:
    async def walk() -> None:
        launcher = RayLauncher(RaySettings(on_gpus=True, num_gpus=0), slots_of(1, 1, 0, 32, 8))
        try:
            with pytest.raises(ConfigError, match=r"--device cuda: no host of this Ray has a GPU \(1 hosts\)"):
                await launcher.open()
        finally:
            await launcher.close()

    asyncio.run(walk())
