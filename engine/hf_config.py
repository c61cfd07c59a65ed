"""The `config.json` of a Hugging Face folder, read into one frozen description that fits every supported family.

Imports no torch: the head process reads it too. Source: the configuration classes of transformers 4.5x and 5.x, whose
defaults are repeated here where a key may be absent.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from core.errors import ConfigError

Json = dict[str, object]

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Supported `model_type`s and the architecture each names."""


class RopeType(StrEnum):
    """How rotary frequencies are stretched beyond the trained context."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `original_max_position` and what follows count for LLAMA3 and YARN only."""

    type: RopeType
    theta: float
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder, whatever its family: families differ by these fields and by nothing else.

    Invariant: `num_heads` is a multiple of `num_kv_heads`; `head_dim` is even.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_model_len: int
    rope: RopeConfig
    tied_embeddings: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str
    eos_token_ids: frozenset[int]

    @property
    def heads_per_kv_head(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads


class _Fields:
    """Typed reading of one JSON object. Owns: the problems found while reading it."""

    def __init__(self, data: Json, where: str, problems: list[str]) -> None:
        self._data = data
        self._where = where
        self._problems = problems

    def problem(self, text: str) -> None:
        self._problems.append(f"{self._where}: {text}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._data.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.problem(f"{key} must be a positive integer, got {value!r}")
        return 1

    def number(self, key: str, default: float | None = None) -> float:
        value = self._data.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        self.problem(f"{key} must be a positive number, got {value!r}")
        return 1.0

    def optional_number(self, key: str) -> float | None:
        return None if self._data.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self._data.get(key)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self.problem(f"{key} must be true or false, got {value!r}")
        return default


def read_json(path: Path) -> Json:
    """A JSON object from a file. Raises ConfigError naming the file when it is missing, unreadable or not an object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError([f"{path} does not exist; a model folder needs it, as save_pretrained writes it"]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path} cannot be read as JSON: {error}; fetch the file again"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{path} must hold a JSON object, found {type(data).__name__}; fetch the file again"])
    return data


def read_model_config(folder: Path) -> ModelConfig:
    """The folder's `config.json` and `generation_config.json`. Raises ConfigError with every problem that was found."""
    if not folder.is_dir():
        raise ConfigError([f"model folder {folder} does not exist; give the path of a Hugging Face folder"])
    data = read_json(folder / "config.json")
    problems: list[str] = []
    fields = _Fields(data, str(folder / "config.json"), problems)
    family = _family(data, fields)
    if family is not None:
        _refuse_unsupported(data, fields)
        config = _model_config(family, data, fields, _eos_token_ids(folder, data, problems))
    if problems or family is None:
        raise ConfigError(problems)
    return config


def _family(data: Json, fields: _Fields) -> str | None:
    family = data.get("model_type")
    if isinstance(family, str) and family in FAMILIES:
        return family
    architectures = data.get("architectures")
    fields.problem(
        f"model_type {family!r} (architectures {architectures!r}) is not supported; "
        f"supported are {', '.join(f'{kind} ({name})' for kind, name in FAMILIES.items())}"
    )
    return None


def _refuse_unsupported(data: Json, fields: _Fields) -> None:
    known, architectures = set(FAMILIES.values()), data.get("architectures")
    if isinstance(architectures, list) and architectures and not known & set(architectures):
        fields.problem(f"architectures {architectures!r} is not supported; supported are {', '.join(sorted(known))}")
    activation = data.get("hidden_act", "silu")
    if activation != "silu":
        fields.problem(f"hidden_act {activation!r} is not supported; only 'silu' is")
    if data.get("quantization_config") is not None:
        fields.problem("quantization_config is set; quantised checkpoints are not supported, use the unquantised one")
    if _slides(data):
        fields.problem("sliding window attention is in use (use_sliding_window, layer_types); it is not supported yet")


def _slides(data: Json) -> bool:
    kinds = data.get("layer_types")
    if isinstance(kinds, list):
        return any(kind != "full_attention" for kind in kinds)
    if not data.get("use_sliding_window") or data.get("sliding_window") is None:
        return False
    first, layers = data.get("max_window_layers", 0), data.get("num_hidden_layers", 0)
    return not (isinstance(first, int) and isinstance(layers, int) and first >= layers)


def _model_config(family: str, data: Json, fields: _Fields, eos: frozenset[int]) -> ModelConfig:
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    head_dim = fields.integer("head_dim", 128 if family == "qwen3" else max(1, hidden // heads))
    if heads % kv_heads:
        fields.problem(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})")
    if head_dim % 2:
        fields.problem(f"head_dim must be even for rotary embedding, got {head_dim}")
    attention_bias = family != "qwen2" and fields.flag("attention_bias", False)
    max_position = fields.integer("max_position_embeddings")
    rope = _rope(data, fields, max_position)
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_model_len=_max_model_len(rope, max_position),
        rope=rope,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=attention_bias,
        mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
        qk_norm=family == "qwen3",
        dtype=_dtype(data, fields),
        eos_token_ids=eos,
    )


def _max_model_len(rope: RopeConfig, max_position: int) -> int:
    match rope.type:
        case RopeType.LINEAR:
            return int(max_position * rope.factor)
        case RopeType.YARN:
            return max(max_position, int(rope.original_max_position * rope.factor))
    return max_position


def _rope(data: Json, fields: _Fields, max_position: int) -> RopeConfig:
    """Both spellings: `rope_scaling` beside `rope_theta` (which wins), and `rope_parameters`, which holds all."""
    merged: Json = {key: data.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    given = data.get("rope_scaling") or data.get("rope_parameters")
    if isinstance(given, dict):
        merged.update(given)
        original = "original_max_position_embeddings"
        merged[original] = data.get(original) or merged.get(original)
    elif given is not None:
        fields.problem(f"rope_scaling or rope_parameters must be an object or null, got {given!r}")
    rope = _Fields(merged, f"{fields._where}: rope", fields._problems)
    for key in (key for key, value in merged.items() if isinstance(value, dict)):
        rope.problem(f"{key} has parameters of its own; one rope for all layers is supported")
    if merged.get("partial_rotary_factor") not in (None, 1, 1.0):
        rope.problem(f"partial_rotary_factor {merged['partial_rotary_factor']!r} is not supported; only 1.0 is")
    kind = merged.get("rope_type") or merged.get("type") or "default"
    if kind not in list(RopeType):
        rope.problem(f"rope_type {kind!r} is not supported; supported are {', '.join(RopeType)}")
        kind = RopeType.DEFAULT
    return _rope_of_type(RopeType(str(kind)), rope, max_position)


def _rope_of_type(kind: RopeType, rope: _Fields, max_position: int) -> RopeConfig:
    theta = rope.number("rope_theta", 10_000.0)
    if kind is RopeType.DEFAULT:
        return RopeConfig(kind, theta)
    factor = rope.number("factor")
    if kind is RopeType.LINEAR:
        return RopeConfig(kind, theta, factor)
    original = rope.integer("original_max_position_embeddings", max_position)
    if kind is RopeType.LLAMA3:
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            rope.problem(f"high_freq_factor ({high:g}) must be above low_freq_factor ({low:g})")
        return RopeConfig(kind, theta, factor, original, low, high)
    return RopeConfig(
        kind,
        theta,
        factor,
        original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.optional_number("attention_factor"),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )


def _dtype(data: Json, fields: _Fields) -> str:
    dtype = data.get("dtype") or data.get("torch_dtype") or "float32"
    if isinstance(dtype, str) and dtype in ("float32", "float16", "bfloat16", "float64"):
        return dtype
    fields.problem(f"dtype {dtype!r} is not supported; supported are float32, float16, bfloat16, float64")
    return "float32"


def _eos_token_ids(folder: Path, data: Json, problems: list[str]) -> frozenset[int]:
    """From `generation_config.json` where it names any, otherwise from `config.json`; none at all is legal."""
    generation = folder / "generation_config.json"
    found: tuple[tuple[Path, object], ...] = ((folder / "config.json", data.get("eos_token_id")),)
    if generation.exists():
        found = ((generation, read_json(generation).get("eos_token_id")), *found)
    for path, value in found:
        if value is None or value == []:
            continue
        ids = value if isinstance(value, list) else [value]
        if all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in ids):
            return frozenset(ids)
        problems.append(f"{path}: eos_token_id must be a token id or a list of them, got {value!r}")
    return frozenset()
