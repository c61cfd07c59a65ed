"""A cluster of two processes whose KV travels by one transport or another says the same tokens by each."""

import asyncio
from dataclasses import replace

import pytest

from cluster.live.config import NodeSettings, slots_of
from tests.live.posts import until
from tests.live.test_model_cluster import expected, running, settings

__all__ = ["expected", "settings"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("transport", ["shm", "gloo", "measured"])
def test_tokens_do_not_depend_on_the_transport(settings: NodeSettings, expected: list[int], transport: str) -> None:
    async def walk() -> None:
        async with running(replace(settings, transport=transport), slots_of(1, 1, 0, 32, 8)) as here:
            for i in range(4):
                here.open(f"r{i}")
            for i in range(4):
                assert await here.tokens(f"r{i}") == expected
            await until(lambda: sum(node.num_bytes for node in here.cluster.state().nodes) > 0)
            assert sum(node.num_failed_fetches for node in here.cluster.state().nodes) == 0

    asyncio.run(walk())
