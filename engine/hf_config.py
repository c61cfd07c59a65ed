"""The `config.json` of a Hugging Face folder, read into one frozen description that fits every supported family.

Imports no torch: the head process reads it too. Source: the configuration classes of transformers 4.5x and 5.x, whose
defaults are repeated here where a key may be absent.
"""

from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from engine.families import FAMILIES, RELATIVES, Biases, Family, Routing, Windows
from engine.fields import Fields, Json, read_json
from engine.rope_config import RopeConfig, RopeType, read_rope

__all__ = ["MoEConfig", "ModelConfig", "RopeConfig", "RopeType", "read_model_config"]

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Our names of activations by those of transformers."""


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """The sparse layers of a mixture of experts.

    `sparse` says of each layer whether it has experts; `normalised` whether the weights of a token's experts add up
    to 1. Invariant: 1 <= `experts_per_token` <= `num_experts`.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    normalised: bool
    sparse: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder, whatever its family: families differ by these fields and by nothing else.

    `activation` is `silu` or `gelu_tanh`. `windows` has one number a layer: a token sees so many tokens, itself
    included; 0: all before it. Embeddings are multiplied by `embedding_scale`; `norm_offset` is added to each norm's
    stored weight while it is loaded. `intermediate_size` is that of the dense layers.
    Invariant: `num_heads` is a multiple of `num_kv_heads`; `head_dim` is even; no window is negative.
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
    activation: str
    embedding_scale: float
    norm_offset: float
    windows: tuple[int, ...]
    moe: MoEConfig | None
    tied_embeddings: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str
    eos_token_ids: frozenset[int]

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer is a mixture of experts."""
        return self.moe is not None and self.moe.sparse[layer]


def read_model_config(folder: Path) -> ModelConfig:
    """The folder's `config.json` and `generation_config.json`. Raises ConfigError with every problem that was found."""
    if not folder.is_dir():
        raise ConfigError([f"model folder {folder} does not exist; give the path of a Hugging Face folder"])
    data = read_json(folder / "config.json")
    problems: list[str] = []
    fields = Fields(data, str(folder / "config.json"), problems)
    name = _family(fields)
    if name is not None:
        _refuse_unsupported(fields)
        config = _model_config(name, fields, _eos_token_ids(folder, data, problems))
    if problems or name is None:
        raise ConfigError(problems)
    return config


def _family(fields: Fields) -> str | None:
    name = fields.data.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return name
    reason = f": {RELATIVES[name]}" if isinstance(name, str) and name in RELATIVES else ""
    supported = ", ".join(f"{kind} ({family.architecture})" for kind, family in FAMILIES.items())
    fields.problem(
        f"model_type {name!r} (architectures {fields.data.get('architectures')!r}) is not supported{reason}; "
        f"supported are {supported}"
    )
    return None


def _refuse_unsupported(fields: Fields) -> None:
    known, architectures = {each.architecture for each in FAMILIES.values()}, fields.data.get("architectures")
    if isinstance(architectures, list) and architectures and not known & set(map(str, architectures)):
        fields.problem(f"architectures {architectures!r} is not supported; supported are {', '.join(sorted(known))}")
    if fields.data.get("quantization_config") is not None:
        fields.problem("quantization_config is set; quantised checkpoints are not supported, use the unquantised one")
    if fields.data.get("use_bidirectional_attention"):
        fields.problem("use_bidirectional_attention is set; only models that look back are supported")


def _model_config(name: str, fields: Fields, eos: frozenset[int]) -> ModelConfig:
    family = FAMILIES[name]
    hidden, heads, num_layers = (
        fields.integer(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    kv_heads, head_dim = _heads(family, fields, hidden, heads)
    max_position = fields.integer("max_position_embeddings")
    rope = read_rope(fields, head_dim, max_position, family.rope_theta)
    all_biases = family.biases is Biases.BY_CONFIG and fields.flag("attention_bias", False)
    return ModelConfig(
        family=name,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", family.rms_norm_eps),
        max_model_len=rope.max_model_len(max_position),
        rope=rope,
        activation=_activation(family, fields),
        embedding_scale=hidden**0.5 if family.scaled_embeddings else 1.0,
        norm_offset=family.norm_offset,
        windows=_windows(family, fields, num_layers),
        moe=_moe(family, fields, num_layers),
        tied_embeddings=fields.flag("tie_word_embeddings", family.tied_embeddings),
        qkv_bias=family.biases is Biases.QKV or all_biases,
        out_bias=all_biases,
        mlp_bias=family.mlp_bias and fields.flag("mlp_bias", False),
        qk_norm=family.qk_norm,
        dtype=_dtype(fields),
        eos_token_ids=eos,
    )


def _heads(family: Family, fields: Fields, hidden: int, heads: int) -> tuple[int, int]:
    """KV heads and the size of a head. A key that is null means as many KV heads as heads, whatever the family."""
    default = heads if "num_key_value_heads" in fields.data else family.num_kv_heads or heads
    kv_heads = fields.integer("num_key_value_heads", default)
    head_dim = fields.integer("head_dim", family.head_dim or max(1, hidden // heads))
    if heads % kv_heads:
        fields.problem(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})")
    if head_dim % 2:
        fields.problem(f"head_dim must be even for rotary embedding, got {head_dim}")
    return kv_heads, head_dim


def _activation(family: Family, fields: Fields) -> str:
    """Gemma's first checkpoints have the approximation they were trained with in `hidden_activation`."""
    key = "hidden_activation" if fields.data.get("hidden_activation") is not None else "hidden_act"
    given = fields.data.get(key) or family.activation
    if isinstance(given, str) and given in _ACTIVATIONS:
        return _ACTIVATIONS[given]
    fields.problem(f"{key} {given!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
    return "silu"


# ── sliding windows ──────────────────────────────────────────────────────────────────────────────────────────────────


def _windows(family: Family, fields: Fields, num_layers: int) -> tuple[int, ...]:
    """Each layer's window; 0: it sees everything.

    Any window of at least one token is served with blocks of any size: blocks that a layer no longer sees stay where
    they are, because other layers and other requests may see them, and what lies before the window inside a block is
    masked. A window below one would hide a token from itself and leave nothing to attend to; it is refused.
    """
    slides = _sliding_layers(family, fields, num_layers)
    if not any(slides):
        return (0,) * num_layers
    window = fields.data.get("sliding_window", family.default_window)
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        fields.problem(f"sliding_window must be at least 1, since a token sees itself, or null; got {window!r}")
        return (0,) * num_layers
    return tuple(window if each else 0 for each in slides)


def _sliding_layers(family: Family, fields: Fields, num_layers: int) -> list[bool]:
    has_window = fields.data.get("sliding_window", family.default_window) is not None
    by_flag = has_window and fields.flag("use_sliding_window", False)
    given = _layer_types(fields, num_layers)
    match family.windows:
        case Windows.NONE:
            slides = [False] * num_layers
        case Windows.ALL:
            slides = [has_window] * num_layers
        case Windows.ALL_BY_FLAG:
            slides = [by_flag] * num_layers
        case Windows.BY_LAYER:
            first = fields.data.get("max_window_layers", 28)
            if not isinstance(first, int) or isinstance(first, bool):
                fields.problem(f"max_window_layers must be an integer, got {first!r}")
                first = num_layers
            slides = [by_flag and layer >= first for layer in range(num_layers)]
            if given is not None and (by_flag or not any(given)):
                return given
    if given is not None and given != slides:
        fields.problem("layer_types contradicts the sliding window that the other keys ask for; make them agree")
    return slides


def _layer_types(fields: Fields, num_layers: int) -> list[bool] | None:
    """Which layers slide by `layer_types`; None where it is absent."""
    kinds = fields.data.get("layer_types")
    if kinds is None:
        return None
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in known for kind in kinds):
        fields.problem(f"layer_types must name {num_layers} layers, each {' or '.join(known)}, got {kinds!r}")
        return None
    return [kind == "sliding_attention" for kind in kinds]


# ── mixtures of experts ──────────────────────────────────────────────────────────────────────────────────────────────


def _moe(family: Family, fields: Fields, num_layers: int) -> MoEConfig | None:
    """The sparse layers; None where there are none."""
    if family.routing is Routing.NONE:
        return None
    if family.routing is Routing.MIXTRAL:
        defaults, inner, normalised, sparse = (8, 2), fields.integer("intermediate_size"), True, [True] * num_layers
    else:
        defaults, inner = (128, 8), fields.integer("moe_intermediate_size", 768)
        normalised, sparse = fields.flag("norm_topk_prob", False), _sparse_layers(fields, num_layers)
    if not any(sparse):
        return None
    key = "num_experts" if fields.data.get("num_experts") is not None else "num_local_experts"
    experts, chosen = fields.integer(key, defaults[0]), fields.integer("num_experts_per_tok", defaults[1])
    if chosen > experts:
        fields.problem(f"num_experts_per_tok ({chosen}) must be at most {key} ({experts})")
    return MoEConfig(experts, chosen, inner, normalised, tuple(sparse))


def _sparse_layers(fields: Fields, num_layers: int) -> list[bool]:
    dense, step = fields.data.get("mlp_only_layers") or [], fields.integer("decoder_sparse_step", 1)
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        fields.problem(f"mlp_only_layers must be a list of layers, got {dense!r}")
        dense = []
    none = 0 in (fields.data.get("num_experts"), fields.data.get("num_local_experts"))
    return [not none and layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)]


# ── types and end tokens ─────────────────────────────────────────────────────────────────────────────────────────────


def _dtype(fields: Fields) -> str:
    dtype = fields.data.get("dtype") or fields.data.get("torch_dtype") or "float32"
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
