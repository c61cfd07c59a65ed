"""Rotary angles against the modules of transformers, for every kind and far positions."""

import math
from random import Random
from types import ModuleType

import pytest
import torch

from engine.fields import Fields
from engine.rope import Rotary, inverse_frequencies
from engine.rope_config import RopeConfig, RopeType, read_rope
from tests.engine.conftest import TINY
from tests.engine.test_families import rope


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [8, 22, 64, 256])
@pytest.mark.parametrize("kind", RopeType)
def test_angles_are_those_of_transformers(
    kind: RopeType, head_dim: int, dtype: torch.dtype, transformers: ModuleType
) -> None:
    changes = rope(kind, Random(f"{kind} {head_dim}"), head_dim)
    data = {**TINY, **changes, "head_dim": head_dim, "max_position_embeddings": 4096}
    module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**data))
    problems: list[str] = []
    config = read_rope(Fields(data, "config.json", problems), head_dim, 4096, 10_000.0)
    assert not problems
    longest = config.max_model_len(4096)
    positions = torch.cat((torch.arange(100), torch.randint(0, longest, (200,)), torch.tensor([longest - 1])))
    cos, sin = module(torch.empty(0, dtype=dtype), positions[None])
    ours, signed = Rotary(config, head_dim, torch.device("cpu"), dtype).angles(positions)
    assert ours.dtype is signed.dtype is dtype
    assert torch.equal(ours[:, 0], cos[0])
    assert torch.equal(signed[:, 0, head_dim // 2 :], sin[0, :, head_dim // 2 :])
    assert torch.equal(signed[:, 0, : head_dim // 2], -sin[0, :, : head_dim // 2])


def test_frequencies_of_the_default_fall_geometrically_from_one_radian() -> None:
    found = inverse_frequencies(RopeConfig(RopeType.DEFAULT, 10_000.0), 8)
    assert found.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])


def test_dynamic_and_longrope_have_the_frequencies_of_the_trained_context() -> None:
    default = inverse_frequencies(RopeConfig(RopeType.DEFAULT, 500.0), 16)
    assert torch.equal(inverse_frequencies(RopeConfig(RopeType.DYNAMIC, 500.0, 8.0), 16), default)
    short = tuple(1.0 + index for index in range(8))
    longrope = RopeConfig(RopeType.LONGROPE, 500.0, 8.0, 64, short_factors=short)
    torch.testing.assert_close(inverse_frequencies(longrope, 16) * torch.tensor(short), default)


def test_longrope_makes_cosines_larger_by_how_far_the_context_is_stretched() -> None:
    config = RopeConfig(RopeType.LONGROPE, 500.0, 16.0, 64, short_factors=(1.0,) * 4)
    cos, sin = Rotary(config, 8, torch.device("cpu"), torch.float64).angles(torch.tensor([0]))
    assert cos.flatten().tolist() == pytest.approx([math.sqrt(1 + math.log(16) / math.log(64))] * 8)
    assert not sin.any()
