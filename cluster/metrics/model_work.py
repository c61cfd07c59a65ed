"""What steps ask of the hardware, estimated from the model's shape and what nodes say that steps consisted of."""

import math
from dataclasses import dataclass
from pathlib import Path

from core.costs import StepWork
from core.kv import DTYPE_BYTES
from engine.checkpoint import EMBEDDINGS, HEAD, expected_tensors
from engine.hf_config import ModelConfig, read_model_config


@dataclass(frozen=True, slots=True)
class ModelWork:
    """A dense model with full attention. `num_parameters` without embeddings and without the last projection.

    Arithmetic: 2 for each parameter and token, 4·L·H·d_h for each token that a token attends to, 2·d·V for each row's
    logits and those of each prefill step's last token. Reads: all weights once a step, and the KV that rows attend to;
    what chunks read of earlier ones is not told by nodes, and left out.
    """

    num_parameters: int
    num_head_parameters: int
    flops_per_pair: int
    weight_bytes: int
    kv_bytes_per_token: int

    def flops(self, work: StepWork) -> float:
        """Operations of so much work."""
        num_tokens = work.prefill_tokens + work.num_rows
        num_logits = work.num_rows + work.num_prefill_steps
        attended = work.prefill_pairs + work.row_context
        matrices = 2.0 * (self.num_parameters * num_tokens + self.num_head_parameters * num_logits)
        return matrices + self.flops_per_pair * attended

    def bytes_read(self, work: StepWork) -> float:
        """Bytes that are read for so much work."""
        num_steps = work.num_prefill_steps + work.num_decode_steps
        return float(self.weight_bytes * num_steps + self.kv_bytes_per_token * work.row_context)


def model_work(folder: Path, dtype: str, quantization: str = "none") -> ModelWork | None:
    """None where this would not be true: experts, windows, weights of several sizes. Raises ConfigError."""
    config = read_model_config(folder)
    if config.moe is not None or any(config.windows) or quantization != "none":
        return None
    return _of(config, DTYPE_BYTES[dtype])


def _of(config: ModelConfig, num_bytes: int) -> ModelWork:
    sizes = {name: math.prod(shape) for name, shape in expected_tensors(config).items()}
    layers = sum(size for name, size in sizes.items() if name not in (EMBEDDINGS, HEAD))
    head = config.hidden_size * config.vocab_size
    return ModelWork(
        num_parameters=layers,
        num_head_parameters=head,
        flops_per_pair=4 * config.num_layers * config.num_heads * config.head_dim,
        weight_bytes=(layers + head) * num_bytes,
        kv_bytes_per_token=2 * config.num_layers * config.num_kv_heads * config.head_dim * num_bytes,
    )
