"""The pair that `tests/gpu` runs on one GPU, over a stand-in device: its logic, without CUDA."""

import json
from pathlib import Path

import pytest

from cluster.live import transports
from core.kv import SlabShape
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, read_model_info
from tests.engine.conftest import Bench
from tests.engine.test_model import prompt
from tests.gpu.conftest import CONFIG, NUM_BLOCKS
from tests.gpu.pair_node import CHUNK
from tests.gpu.pairs import answers_of_pair

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def stand_in_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stand-in changes of the transports is put back, and no GPU of this machine is meant."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(transports.WHY_NOT, "nccl", transports.WHY_NOT["nccl"])
    monkeypatch.setitem(transports.MAKE, "nccl", transports.MAKE["nccl"])


@pytest.mark.parametrize(("asked", "transport", "counts"), [("auto", "cuda_ipc", {}), ("gloo", "gloo", {"staged": 1})])
def test_two_processes_on_one_device_say_what_one_executor_says(
    tmp_path: Path, asked: str, transport: str, counts: dict[str, int]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shape = SlabShape(read_model_info(tmp_path, LoadFormat.DUMMY).kv_layout(16, "float32"), NUM_BLOCKS)
    slab = bytearray(shape.total_bytes)
    executor = load_executor(ExecutorConfig(tmp_path, load_format=LoadFormat.DUMMY), slab, shape)
    alone = Bench(executor, shape, list(range(NUM_BLOCKS)), slab, [])
    prompts = [prompt(length, length) for length in (1, 16, 23, 100)]
    expected = [alone.generate(f"{i}#0", ids, 12, chunk=CHUNK) for i, ids in enumerate(prompts)]
    executor.close()
    found = answers_of_pair(tmp_path, "float32", "stand-in", prompts, 12, asked)
    assert (found.transport, found.counts) == (transport, counts)
    assert found.num_bytes > 0
    assert found.tokens == expected
