"""A folder that every arm can load: the config of a shape, and seeded random weights as safetensors."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.bench.shapes import write_config
from engine.checkpoint import expected_tensors
from engine.hf_config import read_model_config
from engine.memory import TORCH_DTYPES

SHARD_BYTES = 2 << 30
STANDARD_DEVIATION = 0.02


def write_checkpoint(shape: str, dtype: str, folder: Path, device: str = "cpu") -> None:
    """Write a Hugging Face folder of a named shape, without a tokenizer. The same weights for the same shape and type.

    Weights are normal with a deviation of 0.02, norms 1. Raises ConfigError for an unknown shape.
    """
    write_config(shape, dtype, folder)
    shapes = expected_tensors(read_model_config(folder))
    shards: list[dict[str, Tensor]] = [{}]
    for name, size in shapes.items():
        shards[-1][name] = _tensor(name, size, TORCH_DTYPES[dtype], device)
        if sum(each.nbytes for each in shards[-1].values()) > SHARD_BYTES:
            _write(folder, len(shards), shards[-1])
            shards.append({})
            shards[-2] = dict.fromkeys(shards[-2], torch.empty(0))
    _write(folder, len(shards), shards[-1])
    places = {name: _file(number) for number, shard in enumerate(shards, 1) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _tensor(name: str, size: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(size, dtype=dtype)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    generator = torch.Generator(device).manual_seed(seed)
    random = torch.empty(size, device=device).normal_(0.0, STANDARD_DEVIATION, generator=generator)
    return random.to(dtype).cpu()


def _file(number: int) -> str:
    return f"model-{number:05d}.safetensors"


def _write(folder: Path, number: int, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / _file(number), metadata={"format": "pt"})
