"""Executors on a GPU and on the CPU with the same weights. Needs torch, numpy, safetensors and pytest, nothing else."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from core.kv import SlabShape
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, read_model_info
from tests.engine.conftest import Bench, record

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 515,
    "max_position_embeddings": 512,
    "attention_bias": True,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
NUM_BLOCKS = 128
BLOCK_SIZE = 16


@pytest.fixture(scope="session")
def device() -> str:
    """Where the tests run; skips them where there is none."""
    if not torch.cuda.is_available():
        pytest.skip(f"no CUDA device (torch {torch.__version__})")
    return "cuda"


@pytest.fixture(scope="session")
def triton_ops(device: str) -> ModuleType:
    """The module of Triton's operators, imported late: tests under Triton's interpreter must import it first."""
    module = pytest.importorskip("engine.triton_ops", reason="triton is not installed: CUDA builds of torch bring it")
    assert type(module.decode_kernel).__name__ == "JITFunction", "kernels were made for the interpreter: run this alone"
    return module


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without weights: executors make the same random ones everywhere."""
    made = tmp_path_factory.mktemp("model")
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


@pytest.fixture
def make(folder: Path) -> Iterator[Callable[..., Bench]]:
    """Makes executors over a slab that lies on their own device; closes them afterwards."""
    made: list[Bench] = []

    def bench(device: str, dtype: str = "float32") -> Bench:
        layout = read_model_info(folder, LoadFormat.DUMMY).kv_layout(BLOCK_SIZE, dtype)
        shape = SlabShape(layout, NUM_BLOCKS)
        slab = torch.zeros(shape.total_bytes, dtype=torch.uint8, device=device)
        executor = load_executor(ExecutorConfig(folder, dtype, device, LoadFormat.DUMMY), slab, shape)
        order = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(7)).tolist()
        made.append(Bench(executor, shape, order, slab, record(executor)))
        return made[-1]

    yield bench
    for each in made:
        each.executor.close()


@pytest.fixture
def gpu(make: Callable[..., Bench], device: str) -> Bench:
    """In float32, on the GPU."""
    return make(device)


@pytest.fixture
def cpu(make: Callable[..., Bench], device: str) -> Bench:
    """In float32, on the CPU; skipped with the GPU, so that no test compares the CPU with itself."""
    return make("cpu")
