"""A prefill and a decode node, two processes that share one GPU: KV is handed over within its memory.

Needs cupy, msgpack and xxhash besides what the other GPU tests need. `tests/live/test_pair_node.py` runs the same pair
over a stand-in device.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("msgpack", reason="msgpack is not installed")
pytest.importorskip("xxhash", reason="xxhash is not installed")

from kv_transfer.cuda_device import can_run
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt
from tests.gpu.pair_node import CHUNK
from tests.gpu.pairs import answers_of_pair

pytestmark = pytest.mark.gpu

LENGTHS = (1, 16, 23, 100, 200)
NUM_TOKENS = 32


@pytest.fixture
def shared(device: str) -> str:
    """The GPU of both nodes, where CuPy can allocate on it."""
    if why := can_run():
        pytest.skip(why)
    return device


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_two_processes_on_one_gpu_say_what_one_executor_says(
    make: Callable[..., Bench], shared: str, folder: Path, dtype: str
) -> None:
    prompts = [prompt(length, length) for length in LENGTHS]
    alone = make(shared, dtype)
    expected = [alone.generate(f"{i}#0", ids, NUM_TOKENS, chunk=CHUNK) for i, ids in enumerate(prompts)]
    found = answers_of_pair(folder, dtype, shared, prompts, NUM_TOKENS)
    assert found.transport == "cuda_ipc"
    assert found.num_bytes > 0
    assert found.tokens == expected


def test_the_host_path_says_the_same(make: Callable[..., Bench], shared: str, folder: Path) -> None:
    """Staged through host memory, as between GPUs that nothing joins."""
    prompts = [prompt(length, length) for length in LENGTHS]
    alone = make(shared)
    expected = [alone.generate(f"{i}#0", ids, NUM_TOKENS, chunk=CHUNK) for i, ids in enumerate(prompts)]
    found = answers_of_pair(folder, "float32", shared, prompts, NUM_TOKENS, transport="gloo")
    assert (found.transport, found.counts) == ("gloo", {"staged": 1})
    assert found.num_bytes > 0
    assert found.tokens == expected
