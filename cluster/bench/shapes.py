"""Shapes of models to measure with, and the arithmetic of what a step of them has to do at least. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.kv import DTYPE_BYTES
from engine.hf_config import ModelConfig

_LLAMA: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 0,
    "eos_token_id": 1,
}

SHAPES: Mapping[str, Mapping[str, object]] = {
    "llama-90m": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 12288,
        "max_position_embeddings": 4096,
    },
    "llama-tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
    },
    "llama-8b-kv": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 1280,
        "max_position_embeddings": 4096,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
}
"""Named shapes. `llama-90m` has 0.36 GB of float32 weights: some ten times the cache of the class of machine that the
figures are for, and still minutes for every arm. `llama-8b-kv` has, in float32, the KV bytes of Llama 3 8B and hardly
anything to compute; its vocabulary is the embedded model's. `llama-1b` and `llama-8b` are the shapes of Llama 3."""

CPU_SHAPE, CUDA_SHAPE, QUICK_SHAPE = "llama-90m", "llama-8b", "llama-tiny"


def write_config(name: str, dtype: str, folder: Path) -> None:
    """Write the `config.json` of a named shape. Raises ConfigError for an unknown name."""
    if name not in SHAPES:
        raise ConfigError([f"--config {name!r} is unknown; use one of {', '.join(SHAPES)}"])
    words = {**_LLAMA, "dtype": dtype, **SHAPES[name]}
    (folder / "config.json").write_text(json.dumps(words, indent=1) + "\n")


def matrix_shapes(config: ModelConfig, num_lines: int) -> list[list[int]]:
    """The products of one layer as [m, n, k]: query, key and value; output; gate and up; down."""
    heads, hidden = config.num_heads * config.head_dim, config.hidden_size
    qkv = heads + 2 * config.num_kv_heads * config.head_dim
    sizes = ((qkv, hidden), (hidden, heads), (2 * config.intermediate_size, hidden), (hidden, config.intermediate_size))
    return [[num_lines, n, k] for n, k in sizes]


@dataclass(frozen=True, slots=True)
class StepArithmetic:
    """What one decoder has to compute and to read. Dense models only.

    `matrix_weights` are those of all projections and of the head, each used once for each token; embeddings are looked
    up. Source of the formulas: causal attention costs 2·S²·heads·head_dim FLOP a layer, a projection 2 a weight.
    """

    matrix_weights: int
    head_weights: int
    last_layer_rest: int
    attention_size: int
    num_layers: int
    kv_size: int
    itemsize: int

    @staticmethod
    def of(config: ModelConfig, dtype: str) -> "StepArithmetic":
        """The work of a model in a type. Raises ConfigError for a mixture of experts."""
        if config.moe is not None:
            raise ConfigError(["this measurement knows dense models only"])
        hidden, heads, size = config.hidden_size, config.num_heads, config.head_dim
        out, mlp = heads * size * hidden, 3 * hidden * config.intermediate_size
        layer = hidden * (heads + 2 * config.num_kv_heads) * size + out + mlp
        head = hidden * config.vocab_size
        return StepArithmetic(
            matrix_weights=layer * config.num_layers + head,
            head_weights=head,
            last_layer_rest=out + mlp,
            attention_size=heads * size,
            num_layers=config.num_layers,
            kv_size=2 * config.num_layers * config.num_kv_heads * size,
            itemsize=DTYPE_BYTES[dtype],
        )

    @property
    def weight_bytes(self) -> int:
        """Read by every step, whatever it computes."""
        return self.matrix_weights * self.itemsize

    def kv_bytes(self, num_tokens: int) -> int:
        """KV of so many tokens."""
        return num_tokens * self.kv_size * self.itemsize

    def prefill_flop(self, num_tokens: int) -> float:
        """A whole prompt by the formula: every layer for every token, the head for the last one."""
        body = self.matrix_weights - self.head_weights
        attention = 2.0 * self.num_layers * self.attention_size * num_tokens**2
        return 2.0 * body * num_tokens + attention + 2.0 * self.head_weights

    def executed_flop(self, num_tokens: int) -> float:
        """The same less what need not be done: the last layer's queries serve only the token whose logits are wanted,
        so its attention, output projection and MLP are left out for the others."""
        skipped = num_tokens - 1
        attention = 2.0 * self.attention_size * (num_tokens**2 - num_tokens)
        return self.prefill_flop(num_tokens) - 2.0 * self.last_layer_rest * skipped - attention

    def answer_flop(self, num_prompt: int, num_answered: int) -> float:
        """A prompt and its answer, each token once, whatever it is batched with; attention of the answer left out."""
        return self.executed_flop(num_prompt) + 2.0 * self.matrix_weights * (num_answered - 1)

    def decode_bytes(self, num_rows: int, context: int) -> int:
        """Least traffic of a decode step: all weights once, the KV of each row once."""
        return self.weight_bytes + self.kv_bytes(num_rows * context)
