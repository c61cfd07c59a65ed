"""Configs as models are published with them: keys of old releases, keys that mean nothing here, keys that are off."""

import json
from pathlib import Path

import pytest

from core.errors import ConfigError
from engine.hf_config import ModelConfig, MoEConfig, RopeConfig, RopeType, read_model_config

LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": -1,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
    "a_key_of_some_tool": {"version": [1]},
}
LLAMA_3_1 = LLAMA_2 | {
    "eos_token_id": [128001, 128008, 128009],
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN_2_5 = {
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_3 = QWEN_2_5 | {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "sliding_window": None,
}


MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
MISTRAL_3 = MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768}
MIXTRAL = MISTRAL | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
}
QWEN_3_MOE = QWEN_3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 256000,
}


@pytest.mark.parametrize(
    ("published", "head_dim", "kv_heads", "rope"),
    [
        (LLAMA_2, 128, 32, RopeConfig(RopeType.DEFAULT, 1e4)),
        (LLAMA_3_1, 128, 8, RopeConfig(RopeType.LLAMA3, 5e5, 8.0, 8192)),
        (QWEN_2_5, 64, 2, RopeConfig(RopeType.DEFAULT, 1e6)),
        (QWEN_3, 128, 8, RopeConfig(RopeType.DEFAULT, 1e6)),
        (MISTRAL, 128, 8, RopeConfig(RopeType.DEFAULT, 1e4)),
        (MISTRAL_3, 128, 8, RopeConfig(RopeType.DEFAULT, 1e6)),
        (MIXTRAL, 128, 8, RopeConfig(RopeType.DEFAULT, 1e6)),
        (QWEN_3_MOE, 128, 4, RopeConfig(RopeType.DEFAULT, 1e6)),
        (GEMMA, 256, 1, RopeConfig(RopeType.DEFAULT, 1e4)),
    ],
)
def test_configs_as_they_are_published_are_read(
    published: dict[str, object], head_dim: int, kv_heads: int, rope: RopeConfig, tmp_path: Path
) -> None:
    found = read(published, tmp_path)
    assert (found.head_dim, found.num_kv_heads, found.rope) == (head_dim, kv_heads, rope)
    assert found.dtype == published["torch_dtype"]
    assert found.max_model_len == published["max_position_embeddings"]


def read(published: dict[str, object], folder: Path) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(published))
    return read_model_config(folder)


def without(published: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in published.items() if key not in keys}


@pytest.mark.parametrize(
    ("published", "windows"),
    [
        (MISTRAL, {4096}),
        (without(MISTRAL, "sliding_window"), {4096}),
        (MISTRAL_3, {0}),
        (MIXTRAL, {0}),
        (without(MIXTRAL, "sliding_window"), {0}),
        (MIXTRAL | {"sliding_window": 1}, {1}),
        (QWEN_2_5, {0}),
        (QWEN_2_5 | {"use_sliding_window": True, "max_window_layers": 24}, {0}),
        (QWEN_2_5 | {"use_sliding_window": True, "max_window_layers": 0}, {32768}),
        (QWEN_3 | {"use_sliding_window": True}, {0}),
        (QWEN_3_MOE | {"use_sliding_window": True, "sliding_window": 512}, {512}),
        (LLAMA_2 | {"use_sliding_window": True, "sliding_window": 512}, {0}),
    ],
)
def test_all_layers_slide_or_none(published: dict[str, object], windows: set[int], tmp_path: Path) -> None:
    found = read(published, tmp_path)
    assert set(found.windows) == windows
    assert len(found.windows) == found.num_layers


def test_qwen_slides_in_its_upper_layers_or_in_those_it_names(tmp_path: Path) -> None:
    slides = QWEN_2_5 | {"use_sliding_window": True, "sliding_window": 64}
    assert read(slides, tmp_path).windows == (0,) * 21 + (64,) * 3
    kinds = ["sliding_attention", "full_attention"] * 12
    assert read(slides | {"layer_types": kinds}, tmp_path).windows == (64, 0) * 12


def test_experts_are_in_the_layers_and_of_the_sizes_that_the_config_says(tmp_path: Path) -> None:
    assert read(MIXTRAL, tmp_path).moe == MoEConfig(8, 2, 14336, True, (True,) * 32)
    assert read(QWEN_3_MOE, tmp_path).moe == MoEConfig(128, 8, 768, True, (True,) * 48)
    sparse = read(QWEN_3_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": False}, tmp_path)
    assert sparse.moe is not None
    assert not sparse.moe.normalised
    assert [layer for layer in range(48) if sparse.is_sparse(layer)] == [1, *range(5, 48, 2)]
    renamed = without(QWEN_3_MOE, "num_experts") | {"num_local_experts": 16}
    assert read(renamed, tmp_path).moe == MoEConfig(16, 8, 768, True, (True,) * 48)
    assert read(QWEN_3_MOE | {"num_experts": 0}, tmp_path).moe is None
    assert read(LLAMA_2, tmp_path).moe is None


def test_gemma_scales_embeddings_and_shifts_norms(tmp_path: Path) -> None:
    found = read(GEMMA, tmp_path)
    assert (found.activation, found.norm_offset, found.tied_embeddings) == ("gelu_tanh", 1.0, True)
    assert found.embedding_scale == pytest.approx(2048**0.5)
    assert read(without(GEMMA, "hidden_activation", "hidden_act"), tmp_path).activation == "gelu_tanh"
    with pytest.raises(ConfigError, match=r"hidden_act 'gelu' is not supported; supported are .*gelu_pytorch_tanh"):
        read(without(GEMMA, "hidden_activation"), tmp_path)
    other = read(LLAMA_2, tmp_path)
    assert (other.activation, other.norm_offset, other.embedding_scale) == ("silu", 0.0, 1.0)


def test_keys_that_are_absent_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    assert read(without(MIXTRAL, "rope_theta"), tmp_path).rope.theta == 1e6
    assert read(without(MISTRAL, "rope_theta"), tmp_path).rope.theta == 1e4
    assert read(without(MISTRAL, "num_key_value_heads"), tmp_path).num_kv_heads == 8
    assert read(MISTRAL | {"num_key_value_heads": None}, tmp_path).num_kv_heads == 32
    assert read(without(LLAMA_2, "num_key_value_heads"), tmp_path).num_kv_heads == 32
    assert read(without(GEMMA, "head_dim"), tmp_path).head_dim == 256


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        ({"type": "linear", "factor": 2.0}, 8192),
        ({"type": "dynamic", "factor": 2.0}, 4096),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}, 4096),
    ],
)
def test_a_sequence_may_be_as_long_as_its_rope_is_well_defined(
    scaling: dict[str, object], longest: int, tmp_path: Path
) -> None:
    assert read(LLAMA_2 | {"rope_scaling": scaling}, tmp_path).max_model_len == longest


def test_longrope_is_served_up_to_its_trained_context(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    long = LLAMA_2 | {"rope_scaling": {"rope_type": "longrope", **factors}, "max_position_embeddings": 131072}
    found = read(long | {"original_max_position_embeddings": 4096}, tmp_path)
    assert (found.max_model_len, found.rope.factor, found.rope.short_factors) == (4096, 32.0, (1.0,) * 64)
