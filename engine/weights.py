"""Weights: from safetensors shards, or seeded random ones, into the few matrices that the decoder multiplies by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from core.errors import ConfigError
from engine.checkpoint import (
    EMBEDDINGS,
    FUSED_DOWN,
    FUSED_GATE_UP,
    HEAD,
    Checkpoint,
    ExpertLayout,
    check_tensors,
    expected_tensors,
    expert_layout,
    moe_prefix,
    open_checkpoint,
)
from engine.dummy import DummySource
from engine.families import FAMILIES
from engine.hf_config import ModelConfig
from engine.linear import Int8Linear, Linear, round_rows
from engine.moe import Experts
from engine.shards import Shards

Progress = Callable[[int, int], None]
"""Called with (done bytes, total bytes) as stored, after each tensor."""

Part = tuple[str, int | None]
"""A tensor by its Hugging Face name, or slice `index` of one."""

_QUANTIZED_ROWS = 256
"""Rows that are rounded at a time: the temporaries of a whole output head would be several times its size."""

Matrix = Linear | Int8Linear
"""What activations are multiplied by."""


@dataclass(frozen=True, slots=True)
class DenseMLP:
    """Gate and up projection as one matrix, and the way back. Shapes: `gate_up` [2 inner, hidden]."""

    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Projections of the same input are one matrix.

    Shapes: `qkv` [(heads + 2 kv_heads) * head_dim, hidden]; `qk_norm` [heads + kv_heads, head_dim]; norms [hidden].
    """

    attention_norm: Tensor
    qkv: Matrix
    qk_norm: Tensor | None
    out: Matrix
    mlp_norm: Tensor
    mlp: DenseMLP | Experts


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole decoder. `head` multiplies by `embeddings` itself where they are tied and not quantised."""

    embeddings: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Matrix


class Source(Protocol):
    """Where tensors come from, by their Hugging Face names; `shapes` has those of all of them."""

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str, into: Tensor, index: int | None = None) -> None:
        """Fill a contiguous tensor with the named one, or with its slice `index`, converted to its type and device."""


@dataclass(frozen=True, slots=True)
class Form:
    """What weights are turned into. `quantization` is `none` or `int8`, which needs a CPU and float32."""

    dtype: torch.dtype
    device: torch.device
    quantization: str = "none"
    num_threads: int = 1


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    quantization: str = "none",
    num_threads: int = 1,
) -> Weights:
    """Read a folder's safetensors, memory-mapped, one tensor at a time. Raises ConfigError naming what is wrong.

    More memory than the weights take is needed for one tensor only (`tests/engine/test_weights.py` measures it).
    """
    checkpoint = open_checkpoint(folder)
    check_tensors(checkpoint, config)
    layout = expert_layout(checkpoint)
    source = _CheckpointSource(checkpoint, expected_tensors(config, layout), progress)
    if config.tied_embeddings and HEAD in checkpoint.tensors:
        source.check_tied()
    return _Assembly(config, source, Form(dtype, device, quantization, num_threads), layout).weights()


def dummy_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    quantization: str = "none",
    num_threads: int = 1,
) -> Weights:
    """Random weights of the right shapes: the same for the same config and seed, on every device."""
    source = DummySource(expected_tensors(config), 1.0 - config.norm_offset, seed)
    form = Form(dtype, device, quantization, num_threads)
    return _Assembly(config, source, form, ExpertLayout.SEPARATE).weights()


class _CheckpointSource:
    """Tensors of a checkpoint.

    Owns: the maps of its shards, and how many of the wanted bytes have been read.
    """

    def __init__(
        self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], progress: Progress | None
    ) -> None:
        self.shapes = shapes
        self._checkpoint = checkpoint
        self._shards = Shards(checkpoint.shards)
        self._progress = progress
        wanted = [checkpoint.tensors[name] for name in shapes]
        self._total, self._done = sum(entry.end - entry.start for entry in wanted), 0

    def read(self, name: str, into: Tensor, index: int | None = None) -> None:
        """See `Source`. Raises ConfigError where a number is not finite."""
        self._done += self._shards.copy(self._checkpoint.tensors[name], into, index)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def check_tied(self) -> None:
        """Old releases of transformers would drop the second copy, new ones would not tie: refuse to guess."""
        embeddings, head = (self._checkpoint.tensors[name] for name in (EMBEDDINGS, HEAD))
        same_type = embeddings.dtype == head.dtype
        if not same_type or not torch.equal(self._shards.view(embeddings), self._shards.view(head)):
            place = f"{self._checkpoint.folder}: config.json has tie_word_embeddings true"
            found = f"{place}, and {HEAD} differs from {EMBEDDINGS}"
            raise ConfigError([f"{found}; set tie_word_embeddings to false to use it, or remove it"])


class _Assembly:
    """Puts a source's tensors together. Each is copied once, to where it stays.

    Owns: for weights that are quantised, the scratch that each of them is read into before, and the panel that some
    rows of it are rounded in. Both last as long as the loading: what is freed between matrices that stay leaves holes
    in the allocator's heap, which were up to 60 MB of a 240 MB load and differed from run to run.
    """

    def __init__(self, config: ModelConfig, source: Source, form: Form, layout: ExpertLayout) -> None:
        self._config = config
        self._source = source
        self._form = form
        self._layout = layout
        self._is_quantized = form.quantization == "int8"
        self._scratch = self._empty(_largest_matrix(config) if self._is_quantized else 0)
        widest = max(shape[-1] for shape in source.shapes.values())
        self._panel = self._empty(_QUANTIZED_ROWS * widest if self._is_quantized else 0)

    def weights(self) -> Weights:
        embeddings = self._stacked(EMBEDDINGS)
        layers = tuple(self._layer(index) for index in range(self._config.num_layers))
        norm = self._norm("model.norm.weight")
        head = self._matrix(embeddings if self._config.tied_embeddings else self._weight(HEAD), None)
        return Weights(embeddings, layers, norm, head)

    def _layer(self, index: int) -> LayerWeights:
        config, prefix = self._config, f"model.layers.{index}."
        inputs = [f"{prefix}self_attn.{each}_proj" for each in "qkv"]
        return LayerWeights(
            attention_norm=self._norm(f"{prefix}input_layernorm.weight"),
            qkv=self._linear(inputs, config.qkv_bias),
            qk_norm=self._qk_norm(f"{prefix}self_attn.") if config.qk_norm else None,
            out=self._linear([f"{prefix}self_attn.o_proj"], config.out_bias),
            mlp_norm=self._norm(f"{prefix}post_attention_layernorm.weight"),
            mlp=self._dense(f"{prefix}mlp.") if not config.is_sparse(index) else self._experts(index),
        )

    def _dense(self, prefix: str) -> DenseMLP:
        bias = self._config.mlp_bias
        gate_up = self._linear([f"{prefix}gate_proj", f"{prefix}up_proj"], bias)
        return DenseMLP(gate_up, self._linear([f"{prefix}down_proj"], bias))

    def _experts(self, layer: int) -> Experts:
        moe, prefix = self._config.moe, moe_prefix(self._config, layer, self._layout)
        assert moe is not None, "a sparse layer has a config"
        hidden, inner = self._config.hidden_size, moe.intermediate_size
        router = Linear(self._stacked(f"{prefix}gate.weight"), None, self._form.num_threads)
        names = [self._expert_parts(prefix, each) for each in range(moe.num_experts)]
        gate_up, stacked_up = self._expert_matrices(2 * inner, hidden, [ups for ups, _ in names])
        down, stacked_down = self._expert_matrices(hidden, inner, [downs for _, downs in names])
        stacked = None if stacked_up is None or stacked_down is None else (stacked_up, stacked_down)
        return Experts(router, gate_up, down, stacked, moe.experts_per_token, moe.normalised, self._config.activation)

    def _expert_parts(self, prefix: str, expert: int) -> tuple[list[Part], list[Part]]:
        """What makes up one expert's gate and up projection, and the way back."""
        if self._layout is ExpertLayout.FUSED:
            return [(prefix + FUSED_GATE_UP, expert)], [(prefix + FUSED_DOWN, expert)]
        gate, up, down = (
            f"{prefix}experts.{expert}.{name}.weight" for name in FAMILIES[self._config.family].expert_parts
        )
        return [(gate, None), (up, None)], [(down, None)]

    def _expert_matrices(
        self, rows: int, columns: int, parts: Sequence[Sequence[Part]]
    ) -> tuple[tuple[Matrix, ...], Tensor | None]:
        """One matrix for each expert, and all of them as one tensor: the same memory. Quantised: each on its own."""
        if self._is_quantized:
            return tuple(self._matrix(self._filled(self._room(rows, columns), each), None) for each in parts), None
        stacked = self._empty(len(parts), rows, columns)
        for matrix, each in zip(stacked, parts, strict=True):
            self._filled(matrix, each)
        return tuple(self._matrix(matrix, None) for matrix in stacked), stacked

    def _qk_norm(self, prefix: str) -> Tensor:
        """Query and key norms repeated per head, so that one operator scales both."""
        query, key = self._norm(f"{prefix}q_norm.weight"), self._norm(f"{prefix}k_norm.weight")
        return torch.cat((query.expand(self._config.num_heads, -1), key.expand(self._config.num_kv_heads, -1)))

    def _norm(self, name: str) -> Tensor:
        """A norm's weight with the family's offset, which is added before rounding to the compute type."""
        form, exact = self._form, torch.promote_types(self._form.dtype, torch.float32)
        weight = torch.empty(self._source.shapes[name], dtype=exact, device=form.device)
        self._source.read(name, weight)
        return weight.add_(self._config.norm_offset).to(form.dtype)

    def _linear(self, names: Sequence[str], bias: bool) -> Matrix:
        weight = self._weight(*(f"{name}.weight" for name in names))
        return self._matrix(weight, self._stacked(*(f"{name}.bias" for name in names)) if bias else None)

    def _matrix(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        if self._is_quantized:
            return self._quantized(weight, bias)
        return Linear(weight, bias, self._form.num_threads)

    def _quantized(self, weight: Tensor, bias: Tensor | None) -> Int8Linear:
        """`Int8Linear.quantize`, some rows at a time: rows are rounded independently of each other."""
        steps, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
        for start in range(0, len(weight), _QUANTIZED_ROWS):
            part = weight[start : start + _QUANTIZED_ROWS]
            end = start + len(part)
            round_rows(part, (steps[start:end], scales[start:end]), self._panel[: part.numel()].view(part.shape))
        return Int8Linear(steps, scales, bias, self._form.num_threads)

    def _stacked(self, *names: str) -> Tensor:
        """Tensors of the same width, below each other in one."""
        return self._filled(self._empty(*self._shape(names)), [(name, None) for name in names])

    def _weight(self, *names: str) -> Tensor:
        """The same for a matrix."""
        return self._filled(self._room(*self._shape(names)), [(name, None) for name in names])

    def _shape(self, names: Sequence[str]) -> tuple[int, ...]:
        shapes = [self._source.shapes[name] for name in names]
        return sum(shape[0] for shape in shapes), *shapes[0][1:]

    def _filled(self, into: Tensor, parts: Sequence[Part]) -> Tensor:
        start = 0
        for name, index in parts:
            num_rows = self._source.shapes[name][0 if index is None else 1]
            self._source.read(name, into[start : start + num_rows], index)
            start += num_rows
        return into

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._form.dtype, device=self._form.device)

    def _room(self, *shape: int) -> Tensor:
        """Where a matrix is read to: to stay, or until it is quantised."""
        if not self._is_quantized:
            return self._empty(*shape)
        return self._scratch[: prod(shape)].view(shape)


def _largest_matrix(config: ModelConfig) -> int:
    """Elements of the largest weight that is multiplied by, embeddings aside."""
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    gate_up = 2 * max(config.intermediate_size, 0 if config.moe is None else config.moe.intermediate_size)
    head = 0 if config.tied_embeddings else config.vocab_size
    return max(qkv, gate_up, head) * config.hidden_size
