"""Configs as models are published with them: keys of old releases, keys that mean nothing here, keys that are off."""

import json
from pathlib import Path

import pytest

from engine.hf_config import RopeConfig, RopeType, read_model_config

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


@pytest.mark.parametrize(
    ("published", "head_dim", "kv_heads", "rope"),
    [
        (LLAMA_2, 128, 32, RopeConfig(RopeType.DEFAULT, 1e4)),
        (LLAMA_3_1, 128, 8, RopeConfig(RopeType.LLAMA3, 5e5, 8.0, 8192)),
        (QWEN_2_5, 64, 2, RopeConfig(RopeType.DEFAULT, 1e6)),
        (QWEN_3, 128, 8, RopeConfig(RopeType.DEFAULT, 1e6)),
    ],
)
def test_configs_as_they_are_published_are_read(
    published: dict[str, object], head_dim: int, kv_heads: int, rope: RopeConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published))
    found = read_model_config(tmp_path)
    assert (found.head_dim, found.num_kv_heads, found.rope) == (head_dim, kv_heads, rope)
    assert found.dtype == published["torch_dtype"]
    assert found.max_model_len == published["max_position_embeddings"]
