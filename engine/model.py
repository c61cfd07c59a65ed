"""One decoder for all families: they differ by the data in `ModelConfig` and `Weights`, not by code."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.hf_config import ModelConfig
from engine.lines import Lines
from engine.memory import KVMemory
from engine.moe import Experts, mixture
from engine.ops import Ops
from engine.rope import Rotary
from engine.weights import DenseMLP, Weights


class Decoder:
    """A transformer decoder over paged KV memory.

    Owns: its weights.
    """

    def __init__(self, config: ModelConfig, weights: Weights, memory: KVMemory, ops: Ops) -> None:
        self.config = config
        self._weights = weights
        self._ops = ops
        self._rotary = Rotary(config.rope, config.head_dim, memory.device, memory.dtype)
        self._scale = config.head_dim**-0.5
        # As a tensor, because the families that scale embeddings were trained with the factor in the weights' type.
        scale = torch.tensor(config.embedding_scale, dtype=memory.dtype, device=memory.device)
        self._embedding_scale = None if config.embedding_scale == 1.0 else scale

    def forward(self, lines: Lines, wanted: Tensor | None = None, max_wanted_context: int = 0) -> Tensor:
        """Compute a step: writes the KV of all lines, returns logits of the `wanted` ones (None: all).

        In the last layer the other lines are needed for their KV only. Measured: a prefill of 512 tokens through the
        embedded model's four layers took 41 ms with all lines in the last one, 33 with the last line only.
        Shapes: `wanted` [S] -> [S, vocab].
        """
        ops, layers, eps = self._ops, self._weights.layers, self.config.rms_norm_eps
        angles = self._rotary.angles(lines.positions)
        hidden = self._embed(lines.token_ids)
        normed = ops.rms_norm(hidden, layers[0].attention_norm, eps)
        for index, layer in enumerate(layers):
            queries = ops.store(index, layer.qkv(normed), lines, angles, layer.qk_norm, eps)
            if index == len(layers) - 1 and wanted is not None:
                hidden, queries, lines = hidden[wanted], queries[wanted], lines.select(wanted, max_wanted_context)
            attended = self._attend(index, queries, lines)
            normed = ops.add_rms_norm(hidden, layer.out(attended), layer.mlp_norm, eps)
            delta = self._mlp(layer.mlp, normed)
            after = layers[index + 1].attention_norm if index + 1 < len(layers) else self._weights.norm
            normed = ops.add_rms_norm(hidden, delta, after, eps)
        return self._weights.head(normed)

    def _embed(self, token_ids: Tensor) -> Tensor:
        hidden = functional.embedding(token_ids, self._weights.embeddings)
        return hidden if self._embedding_scale is None else hidden * self._embedding_scale

    def _attend(self, index: int, queries: Tensor, lines: Lines) -> Tensor:
        """Shapes: [N, heads, head_dim] -> [N, heads * head_dim]."""
        window, num_single = self.config.windows[index], lines.num_single
        if not lines.chunks:
            return self._ops.decode(index, queries, lines, window, self._scale).flatten(1)
        out = queries.new_empty(queries.shape)
        if num_single:
            out[:num_single] = self._ops.decode(index, queries[:num_single], lines, window, self._scale)
        self._ops.prefill(index, queries, lines, window, self._scale, out)
        return out.flatten(1)

    def _mlp(self, mlp: DenseMLP | Experts, hidden: Tensor) -> Tensor:
        if isinstance(mlp, Experts):
            return mixture(self._ops, mlp, hidden)
        return mlp.down(self._ops.gated(mlp.gate_up(hidden), self.config.activation))
