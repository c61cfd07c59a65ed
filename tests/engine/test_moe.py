"""Mixtures of experts: the layer alone, against transformers and against itself."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from core.kv import KVLayout, SlabShape
from engine.hf_config import read_model_config
from engine.linear import Linear
from engine.memory import KVMemory
from engine.moe import Experts, _grouped, _one_by_one, mixture, route
from engine.ops import TorchOps
from engine.weights import load_weights

HIDDEN, INNER, NUM_EXPERTS = 24, 16, 7


@pytest.fixture
def ops() -> TorchOps:
    shape = SlabShape(KVLayout(1, 1, 8, 4, "float32"), 2)
    return TorchOps(KVMemory(bytearray(shape.total_bytes), shape))


class Counted(Linear):
    """A matrix that notes how many lines went through it in each call."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.calls: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return super().__call__(x)


def experts(per_token: int = 2, normalised: bool = True, dtype: torch.dtype = torch.float32) -> Experts:
    generator = torch.Generator().manual_seed(per_token)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    gate_up, down = draw(NUM_EXPERTS, 2 * INNER, HIDDEN), draw(NUM_EXPERTS, HIDDEN, INNER)
    router = Linear(draw(NUM_EXPERTS, HIDDEN))
    matrices = [tuple(Counted(matrix) for matrix in stacked) for stacked in (gate_up, down)]
    return Experts(router, *matrices, (gate_up, down), per_token, normalised, "silu")


def tokens(num: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num, HIDDEN, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("per_token", [1, 2, 7])
def test_a_mixture_is_the_weighted_sum_of_the_experts_with_the_highest_scores(
    per_token: int, normalised: bool, ops: TorchOps
) -> None:
    layer, hidden = experts(per_token, normalised), tokens(9)
    out = mixture(ops, layer, hidden)
    for line, token in enumerate(hidden):
        scores = torch.softmax(layer.router.weight @ token, -1)
        best = scores.argsort(descending=True)[:per_token].tolist()
        total = scores[best].sum() if normalised else 1.0
        expected = torch.zeros(HIDDEN)
        for index in best:
            gate, up = (layer.gate_up[index].weight @ token).chunk(2)
            expected += scores[index] / total * (layer.down[index].weight @ (torch.nn.functional.silu(gate) * up))
        torch.testing.assert_close(out[line], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 40])
def test_each_expert_computes_its_own_tokens_and_an_unchosen_one_nothing(num_tokens: int, ops: TorchOps) -> None:
    layer, hidden = experts(), tokens(num_tokens)
    mixture(ops, layer, hidden)
    _, chosen = route(layer, hidden)
    expected = torch.bincount(chosen.flatten(), minlength=NUM_EXPERTS).tolist()
    for matrices in (layer.gate_up, layer.down):
        assert [sum(each.calls) for each in matrices] == expected
        assert all(len(each.calls) <= 1 for each in matrices), "one product a step, however many tokens"


def test_no_tokens_make_no_lines(ops: TorchOps) -> None:
    assert mixture(ops, experts(), tokens(0)).shape == (0, HIDDEN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_token_is_computed_alike_whoever_is_beside_it(dtype: torch.dtype, ops: TorchOps) -> None:
    layer, hidden = experts(3, dtype=dtype), tokens(33, dtype=dtype)
    together = mixture(ops, layer, hidden)
    assert together.dtype is dtype
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}[dtype]
    for line in range(33):
        alone = mixture(ops, layer, hidden[line : line + 1])[0]
        torch.testing.assert_close(together[line], alone, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("num_tokens", [1, 3, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_compute_what_experts_one_by_one_do(
    num_tokens: int, dtype: torch.dtype, ops: TorchOps
) -> None:
    layer, hidden = experts(3, dtype=dtype), tokens(num_tokens, dtype=dtype)
    assert layer.stacked is not None
    _, chosen = route(layer, hidden)
    grouped = _grouped(ops, layer, layer.stacked, hidden, chosen)
    single = _one_by_one(ops, layer, hidden, chosen)
    tolerance = 1e-4 if dtype is torch.float32 else 5e-2
    torch.testing.assert_close(grouped, single, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_loaded_layer_is_the_block_of_transformers(
    name: str,
    is_fused: bool,
    dtype: torch.dtype,
    make_folder: Callable[..., Path],
    transformers: ModuleType,
    ops: TorchOps,
) -> None:
    folder = make_folder(name, is_fused=is_fused)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").to(dtype)
    config = read_model_config(folder)
    layer = load_weights(folder, config, dtype, torch.device("cpu")).layers[1].mlp
    assert isinstance(layer, Experts)
    for num_tokens in (1, 2, 33, 100):
        generator = torch.Generator().manual_seed(num_tokens)
        hidden = torch.randn(num_tokens, config.hidden_size, dtype=dtype, generator=generator)
        with torch.inference_mode():
            expected = model.model.layers[1].mlp(hidden[None])[0]
        tolerance = 1e-5 if dtype is torch.float32 else 1e-12
        torch.testing.assert_close(mixture(ops, layer, hidden), expected, rtol=tolerance, atol=tolerance)
