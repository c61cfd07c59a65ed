"""The supported families, each as data: what its `config.json` means where another family's would mean something else.

Imports no torch. Source: the configuration and modelling files of transformers 5.17, whose defaults are repeated here.
"""

from dataclasses import dataclass
from enum import Enum


class Biases(Enum):
    """Which attention projections have a bias."""

    NONE = "none"
    QKV = "query, key and value"
    BY_CONFIG = "all four, if attention_bias says so"


class Windows(Enum):
    """Where a family's config says which layers slide."""

    NONE = "no layer slides; sliding_window means nothing"
    ALL = "all layers slide if sliding_window is a number"
    ALL_BY_FLAG = "all layers slide if use_sliding_window says so"
    BY_LAYER = "layer_types, or use_sliding_window from layer max_window_layers on"


class Routing(Enum):
    """Where a family's config says how tokens find their experts."""

    NONE = "dense layers only"
    MIXTRAL = "all layers are sparse, intermediate_size wide; weights of the chosen experts add up to 1"
    QWEN = "mlp_only_layers and decoder_sparse_step choose the sparse layers; norm_topk_prob whether weights add up"


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type`.

    `head_dim` None: the hidden size divided among the heads. `num_kv_heads` None: as many as heads. `norm_offset` is
    added to each norm's stored weight. `scaled_embeddings`: multiplied by the root of the hidden size. `moe_module` is
    what a sparse layer's experts and router lie in, `expert_parts` the names of gate, up and down of each.
    """

    architecture: str
    biases: Biases = Biases.BY_CONFIG
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: Windows = Windows.NONE
    default_window: int | None = None
    routing: Routing = Routing.NONE
    moe_module: str = "mlp"
    expert_parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    head_dim: int | None = None
    num_kv_heads: int | None = None
    activation: str = "silu"
    norm_offset: float = 0.0
    scaled_embeddings: bool = False
    tied_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0


FAMILIES = {
    "llama": Family("LlamaForCausalLM", mlp_bias=True),
    "mistral": Family("MistralForCausalLM", Biases.NONE, windows=Windows.ALL, default_window=4096, num_kv_heads=8),
    "mixtral": Family(
        "MixtralForCausalLM",
        Biases.NONE,
        windows=Windows.ALL,
        routing=Routing.MIXTRAL,
        moe_module="block_sparse_moe",
        expert_parts=("w1", "w3", "w2"),
        num_kv_heads=8,
        rms_norm_eps=1e-5,
        rope_theta=1_000_000.0,
    ),
    "qwen2": Family("Qwen2ForCausalLM", Biases.QKV, windows=Windows.BY_LAYER, default_window=4096),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, windows=Windows.BY_LAYER, default_window=4096, head_dim=128),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        qk_norm=True,
        windows=Windows.ALL_BY_FLAG,
        default_window=4096,
        routing=Routing.QWEN,
        num_kv_heads=4,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        head_dim=256,
        activation="gelu_pytorch_tanh",
        norm_offset=1.0,
        scaled_embeddings=True,
        tied_embeddings=True,
    ),
}
"""By `model_type`."""

RELATIVES = {
    "gemma2": "it caps its logits and normalises after each block",
    "gemma3": "it sees images and has two rotary embeddings",
    "gemma3_text": "it normalises after each block and has two rotary embeddings",
    "qwen2_moe": "it has an expert that all tokens share",
    "phi3": "it rotates part of each head and stores its projections fused",
}
"""Families that are close to a supported one and would come out wrong as such, with what they need beyond it."""
