"""What the cluster must know of a model before any of it is loaded. Imports no torch: the head process reads it."""

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from core.kv import DTYPE_BYTES, KVLayout
from engine.checkpoint import check_tensors, checkpoint_digest, expected_tensors, open_checkpoint
from engine.hf_config import ModelConfig, read_model_config


class LoadFormat(StrEnum):
    """Where weights come from. DUMMY: seeded random ones for any `config.json`, to measure with."""

    SAFETENSORS = "safetensors"
    DUMMY = "dummy"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model in numbers. `digest` names its weights; `weights_bytes` is their size in `dtype`, the checkpoint's."""

    family: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    dtype: str
    digest: str
    weights_bytes: int

    def kv_layout(self, block_size: int, dtype: str) -> KVLayout:
        """The layout of this model's KV in blocks of `block_size` tokens of type `dtype`."""
        return KVLayout(self.num_layers, self.num_kv_heads, self.head_dim, block_size, dtype)


def read_model_info(folder: Path, load_format: LoadFormat = LoadFormat.SAFETENSORS) -> ModelInfo:
    """Read a folder's headers. Raises ConfigError with every problem that can be told without reading the weights."""
    config = read_model_config(folder)
    return ModelInfo(
        family=config.family,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_model_len=config.max_model_len,
        eos_token_ids=config.eos_token_ids,
        dtype=config.dtype,
        digest=model_digest(folder, load_format),
        weights_bytes=_weights_bytes(config),
    )


def model_digest(folder: Path, load_format: LoadFormat = LoadFormat.SAFETENSORS) -> str:
    """Equal for two folders only where the weights may be taken as equal. Raises ConfigError as `read_model_info`."""
    if load_format == LoadFormat.DUMMY:
        return hashlib.sha256(b"dummy" + (folder / "config.json").read_bytes()).hexdigest()
    checkpoint = open_checkpoint(folder)
    check_tensors(checkpoint, read_model_config(folder))
    return checkpoint_digest(checkpoint)


def _weights_bytes(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in expected_tensors(config).values()) * DTYPE_BYTES[config.dtype]
