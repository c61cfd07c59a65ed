"""A live cluster of two processes on one GPU: hosts, post and supervisor too. Needs what `penstock serve` needs."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="grpc is not installed")
pytest.importorskip("msgpack", reason="msgpack is not installed")
pytest.importorskip("xxhash", reason="xxhash is not installed")

from cluster.gpu_probe import found_gpus
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from cluster.live.gpus import placed
from kv_transfer.cuda_device import can_run
from tests.engine.conftest import Bench
from tests.gpu.conftest import NUM_BLOCKS
from tests.live.posts import until
from tests.live.test_model_cluster import NUM_TOKENS, PROMPT, running

pytestmark = pytest.mark.gpu

CHUNK = 32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cluster_on_one_gpu_says_what_one_executor_says(
    make: Callable[..., Bench], device: str, folder: Path, dtype: str
) -> None:
    if why := can_run():
        pytest.skip(why)
    expected = make(device, dtype).generate("a#0", list(PROMPT), NUM_TOKENS, chunk=CHUNK)

    async def walk() -> None:
        node = NodeSettings(folder, dtype, "dummy", device, num_kv_blocks=NUM_BLOCKS)
        live = placed(LiveConfig(node, slots_of(1, 1, 0, CHUNK, 8)), found_gpus()[:1])
        async with running(live.node, live.slots) as here:
            for turn in range(3):
                here.open(f"r{turn}")
                assert await here.tokens(f"r{turn}") == expected
            await until(lambda: sum(node.num_bytes for node in here.cluster.state().nodes) > 0)
            nodes = here.cluster.state().nodes
            assert {link.transport for node in nodes for link in node.transfers.links} == {"cuda_ipc"}
            assert sum(node.num_failed_fetches for node in nodes) == 0

    asyncio.run(walk())
