"""Rotary position embedding: frequencies by family, and the rotation itself."""

import math

import torch
from torch import Tensor

from engine.hf_config import RopeConfig, RopeType


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of channels. Shapes: float32 [head_dim / 2].

    Computed in float32 whatever the model computes in, because checkpoints were trained with exactly these numbers.
    Source: `modeling_rope_utils.py` of transformers; YaRN: Peng et al. 2023, section 3.2.
    """
    powers = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    match rope.type:
        case RopeType.DEFAULT:
            return 1.0 / powers
        case RopeType.LINEAR:
            return 1.0 / powers / rope.factor
        case RopeType.LLAMA3:
            return _llama3(1.0 / powers, rope)
        case RopeType.YARN:
            return _yarn(powers, rope, head_dim)


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
    """What cosines and sines are multiplied by; other than 1 for YaRN only."""
    if rope.type is not RopeType.YARN:
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(scale: float) -> float:
        return 0.1 * scale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


class Rotary:
    """Turns queries and keys by their positions."""

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self._frequencies = inverse_frequencies(rope, head_dim).to(device)
        self._factor = attention_factor(rope)
        self._half = head_dim // 2
        self._dtype = dtype

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for a step; all layers share them. Shapes: [N] -> two of [N, 1, head_dim]."""
        angles = positions[:, None].float() * self._frequencies
        cos, sin = angles.cos() * self._factor, angles.sin() * self._factor
        cos = torch.cat((cos, cos), -1).to(self._dtype)
        sin = torch.cat((-sin, sin), -1).to(self._dtype)
        return cos[:, None], sin[:, None]

    def turn(self, heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Rotated copy. Shapes: [N, heads, head_dim] -> the same, contiguous."""
        cos, sin = angles
        return (heads * cos).addcmul_(heads.roll(self._half, -1), sin)
