"""The rotary embedding that a `config.json` asks for. Imports no torch: the head process reads it too."""

from dataclasses import dataclass
from enum import StrEnum

from engine.fields import Fields, Json


class RopeType(StrEnum):
    """How rotary frequencies are stretched beyond the trained context.

    DYNAMIC and LONGROPE choose their frequencies by the length of the sequence. Keys are cached as rotated, and shared
    by all requests that begin alike, so none can be turned again once its sequence has grown: only the trained context
    is well defined, where both have one set of frequencies. They are served exactly so, up to that context and not
    beyond it (`max_model_len`). A framework that serves them further decides for one length in advance (vLLM) or mixes
    keys of several frequencies (transformers with a cache), and short prompts or long ones come out differently.
    """

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `original_max_position` and what follows count for LLAMA3, YARN and LONGROPE only.

    `short_factors` divide the frequencies of LONGROPE, one for each pair of channels.
    """

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
    short_factors: tuple[float, ...] = ()

    def max_model_len(self, max_position: int) -> int:
        """The longest sequence this embedding serves, for a model whose config says `max_position`."""
        match self.type:
            case RopeType.LINEAR:
                return int(max_position * self.factor)
            case RopeType.YARN:
                return max(max_position, int(self.original_max_position * self.factor))
            case RopeType.LONGROPE:
                return min(max_position, self.original_max_position)
            case RopeType.DEFAULT | RopeType.DYNAMIC | RopeType.LLAMA3:
                return max_position


def read_rope(fields: Fields, head_dim: int, max_position: int, default_theta: float) -> RopeConfig:
    """Both spellings: `rope_scaling` beside `rope_theta` (which wins), and `rope_parameters`, which holds all."""
    data = fields.data
    merged: Json = {key: data.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    given = data.get("rope_scaling") or data.get("rope_parameters")
    if isinstance(given, dict):
        merged.update({key: value for key, value in given.items() if value is not None})
        original = "original_max_position_embeddings"
        merged[original] = data.get(original) or merged.get(original)
    elif given is not None:
        fields.problem(f"rope_scaling or rope_parameters must be an object or null, got {given!r}")
    rope = fields.part(merged, "rope")
    for key in (key for key, value in merged.items() if isinstance(value, dict)):
        rope.problem(f"{key} has parameters of its own; one rope for all layers is supported")
    if merged.get("partial_rotary_factor") not in (None, 1, 1.0):
        rope.problem(f"partial_rotary_factor {merged['partial_rotary_factor']!r} is not supported; only 1.0 is")
    theta = rope.number("rope_theta", default_theta)
    if theta <= 1:
        rope.problem(f"rope_theta must be above 1, got {theta:g}: frequencies fall by its powers")
    return _of_type(_kind(merged, rope), rope, head_dim, max_position, theta)


def _kind(merged: Json, rope: Fields) -> RopeType:
    kind = merged.get("rope_type") or merged.get("type") or "default"
    if kind in list(RopeType):
        return RopeType(str(kind))
    rope.problem(f"rope_type {kind!r} is not supported; supported are {', '.join(RopeType)}")
    return RopeType.DEFAULT


def _of_type(kind: RopeType, rope: Fields, head_dim: int, max_position: int, theta: float) -> RopeConfig:
    match kind:
        case RopeType.DEFAULT:
            return RopeConfig(kind, theta)
        case RopeType.LINEAR | RopeType.DYNAMIC:
            return RopeConfig(kind, theta, rope.number("factor"))
        case RopeType.LLAMA3:
            return _llama3(rope, max_position, theta)
        case RopeType.YARN:
            return _yarn(rope, max_position, theta)
        case RopeType.LONGROPE:
            return _longrope(rope, head_dim, max_position, theta)


def _llama3(rope: Fields, max_position: int, theta: float) -> RopeConfig:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        rope.problem(f"high_freq_factor ({high:g}) must be above low_freq_factor ({low:g})")
    original = rope.integer("original_max_position_embeddings", max_position)
    return RopeConfig(RopeType.LLAMA3, theta, rope.number("factor"), original, low, high)


def _yarn(rope: Fields, max_position: int, theta: float) -> RopeConfig:
    original = rope.integer("original_max_position_embeddings", max_position)
    implied = max_position / original if original < max_position else None
    return RopeConfig(
        RopeType.YARN,
        theta,
        rope.number("factor", implied),
        original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.optional_number("attention_factor"),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )


def _longrope(rope: Fields, head_dim: int, max_position: int, theta: float) -> RopeConfig:
    original = rope.integer("original_max_position_embeddings", max_position)
    if original == 1:
        rope.problem("original_max_position_embeddings must be above 1: its logarithm is divided by")
    rope.numbers("long_factor", head_dim // 2)
    return RopeConfig(
        RopeType.LONGROPE,
        theta,
        rope.number("factor", max_position / original),
        original,
        attention_factor=rope.optional_number("attention_factor"),
        short_factors=rope.numbers("short_factor", head_dim // 2),
    )
