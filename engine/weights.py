"""Weights: from safetensors shards, or seeded random ones, into the few matrices that the decoder multiplies by."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from core.errors import ConfigError
from engine.checkpoint import EMBEDDINGS, HEAD, check_tensors, expected_tensors, open_checkpoint
from engine.hf_config import ModelConfig

Progress = Callable[[int, int], None]
"""Called with (done bytes, total bytes) as stored, after each tensor."""

Tensors = Callable[[str], Tensor]
"""A tensor by its Hugging Face name, already of the compute type and on the device."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Projections of the same input are one matrix: query, key and value; gate and up.

    Shapes: `qkv` [(heads + 2 kv_heads) * head_dim, hidden]; `qk_norm` [heads + kv_heads, head_dim];
    `gate_up` [2 inner, hidden].
    """

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole decoder. `head` is `embeddings` itself where they are tied."""

    embeddings: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device, progress: Progress | None = None
) -> Weights:
    """Read a folder's safetensors, memory-mapped, one tensor at a time. Raises ConfigError naming what is wrong."""
    checkpoint = open_checkpoint(folder)
    check_tensors(checkpoint, config)
    wanted = [checkpoint.tensors[name] for name in expected_tensors(config)]
    total, done = sum(entry.end - entry.start for entry in wanted), 0
    with ExitStack() as stack:
        files = {shard: stack.enter_context(safe_open(shard, "pt")) for shard in checkpoint.shards}

        def tensor(name: str) -> Tensor:
            nonlocal done
            entry = checkpoint.tensors[name]
            loaded: Tensor = files[entry.shard].get_tensor(name).to(device=device, dtype=dtype, copy=True)
            done += entry.end - entry.start
            if progress is not None:
                progress(done, total)
            return loaded

        if config.tied_embeddings and HEAD in checkpoint.tensors:
            embeddings, head = (files[checkpoint.tensors[each].shard].get_tensor(each) for each in (EMBEDDINGS, HEAD))
            _check_tied(embeddings, head, folder)
        weights = _assemble(config, tensor)
    return weights


def _check_tied(embeddings: Tensor, head: Tensor, folder: Path) -> None:
    """Old releases of transformers would drop the second copy, new ones would not tie: refuse to guess."""
    if embeddings.dtype != head.dtype or not torch.equal(embeddings, head):
        found = f"{folder}: config.json has tie_word_embeddings true, and {HEAD} differs from {EMBEDDINGS}"
        raise ConfigError([f"{found}; set tie_word_embeddings to false to use it, or remove it"])


def dummy_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Weights:
    """Random weights of the right shapes: the same for the same config and seed, on every device."""
    shapes = expected_tensors(config)

    def tensor(name: str) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shapes[name], dtype=dtype, device=device)
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.empty(shapes[name]).normal_(0.0, 0.02, generator=generator).to(device=device, dtype=dtype)

    return _assemble(config, tensor)


def _assemble(config: ModelConfig, tensor: Tensors) -> Weights:
    embeddings = tensor(EMBEDDINGS)
    layers = tuple(_layer(config, f"model.layers.{index}.", tensor) for index in range(config.num_layers))
    head = embeddings if config.tied_embeddings else tensor(HEAD)
    return Weights(embeddings, layers, tensor("model.norm.weight"), head)


def _layer(config: ModelConfig, prefix: str, tensor: Tensors) -> LayerWeights:
    def joined(kind: str, *names: str) -> Tensor:
        parts = [tensor(f"{prefix}{name}.{kind}") for name in names]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def bias(present: bool, *names: str) -> Tensor | None:
        return joined("bias", *names) if present else None

    inputs = tuple(f"self_attn.{each}_proj" for each in "qkv")
    gates = ("mlp.gate_proj", "mlp.up_proj")
    return LayerWeights(
        attention_norm=joined("weight", "input_layernorm"),
        qkv=joined("weight", *inputs),
        qkv_bias=bias(config.qkv_bias, *inputs),
        qk_norm=_qk_norm(config, prefix, tensor) if config.qk_norm else None,
        out=joined("weight", "self_attn.o_proj"),
        out_bias=bias(config.out_bias, "self_attn.o_proj"),
        mlp_norm=joined("weight", "post_attention_layernorm"),
        gate_up=joined("weight", *gates),
        gate_up_bias=bias(config.mlp_bias, *gates),
        down=joined("weight", "mlp.down_proj"),
        down_bias=bias(config.mlp_bias, "mlp.down_proj"),
    )


def _qk_norm(config: ModelConfig, prefix: str, tensor: Tensors) -> Tensor:
    """Query and key norms repeated per head, so that one operator scales both."""
    query, key = tensor(f"{prefix}self_attn.q_norm.weight"), tensor(f"{prefix}self_attn.k_norm.weight")
    return torch.cat((query.expand(config.num_heads, -1), key.expand(config.num_kv_heads, -1)))
