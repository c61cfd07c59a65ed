"""Rotary position embedding: frequencies of each kind, and the angles of a step."""

import math

import torch
from torch import Tensor

from engine.rope_config import RopeConfig, RopeType


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of channels. Shapes: float32 [head_dim / 2].

    Computed in float32 whatever the model computes in, because checkpoints were trained with exactly these numbers.
    DYNAMIC and LONGROPE have those of the trained context (see `RopeType`).
    Source: `modeling_rope_utils.py` of transformers; YaRN: Peng et al. 2023, section 3.2; LongRoPE: Ding et al. 2024.
    """
    powers = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    match rope.type:
        case RopeType.DEFAULT | RopeType.DYNAMIC:
            return 1.0 / powers
        case RopeType.LINEAR:
            return 1.0 / powers / rope.factor
        case RopeType.LLAMA3:
            return _llama3(1.0 / powers, rope)
        case RopeType.YARN:
            return _yarn(powers, rope, head_dim)
        case RopeType.LONGROPE:
            return 1.0 / (torch.tensor(rope.short_factors) * powers)


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between are blended."""
    wavelengths = 2 * math.pi / frequencies
    low, high = rope.low_freq_factor, rope.high_freq_factor
    longest, shortest = rope.original_max_position / low, rope.original_max_position / high
    stretched = torch.where(wavelengths > longest, frequencies / rope.factor, frequencies)
    smooth = (rope.original_max_position / wavelengths - low) / (high - low)
    blended = (1 - smooth) * stretched / rope.factor + smooth * stretched
    between = ~(wavelengths < shortest) & ~(wavelengths > longest)
    return torch.where(between, blended, stretched)


def _yarn(powers: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Channels that turn over `beta_fast` times in the trained context are kept, under `beta_slow` stretched."""

    def channel(turns: float) -> float:
        return head_dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept


def attention_factor(rope: RopeConfig) -> float:
    """What cosines and sines are multiplied by; other than 1 for YARN and LONGROPE only."""
    if rope.type not in (RopeType.YARN, RopeType.LONGROPE):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.type is RopeType.LONGROPE:
        return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position)) if rope.factor > 1 else 1.0

    def mscale(scale: float) -> float:
        return 0.1 * scale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


class Rotary:
    """The angles that queries and keys are turned by."""

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        frequencies = inverse_frequencies(rope, head_dim)
        self._frequencies = torch.cat((frequencies, frequencies)).to(device)
        self._factor = attention_factor(rope)
        self._signed = torch.tensor([-self._factor, self._factor]).repeat_interleave(head_dim // 2).to(device)
        self._dtype = dtype

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for a step; all layers share them. Shapes: [N] -> two of [N, 1, head_dim].

        A head x is turned as x * cos + roll(x, head_dim / 2) * sin: the sines of the first half are negative.
        """
        angles = positions[:, None, None].float() * self._frequencies
        cos = angles.cos() if self._factor == 1.0 else angles.cos().mul_(self._factor)
        return cos.to(self._dtype), angles.sin_().mul_(self._signed).to(self._dtype)
