"""The sampler on a GPU against the CPU: a row that fails over between the two must go on with the same tokens."""

import pytest
import torch

from core.errors import StepFailed
from core.request import SamplingParams
from engine.sampler import sample

pytestmark = pytest.mark.gpu

KINDS: tuple[dict[str, float], ...] = (
    {"temperature": 0.0},
    {},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9},
    {"top_k": 5},
    {"top_p": 0.5},
    {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 100, "top_p": 0.95, "min_p": 0.02},
)


@pytest.mark.parametrize(
    ("dtype", "rows", "vocab"),
    [(torch.float64, 210, 32_003), (torch.float32, 70, 517), (torch.float16, 70, 517), (torch.bfloat16, 70, 517)],
)
def test_the_same_logits_give_the_same_tokens_as_on_the_cpu(
    dtype: torch.dtype, rows: int, vocab: int, device: str
) -> None:
    logits = (3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1))).to(dtype)
    logits[::7, 100] = 50.0  # greedy rows: halves have ties, of which either is right
    params = [SamplingParams(**{"max_tokens": 8, "seed": row, **KINDS[row % 7]}) for row in range(rows)]
    expected = sample(logits, params, range(rows))
    assert sample(logits.to(device), params, range(rows)) == expected
    assert len(set(expected)) > rows // 4


@pytest.mark.parametrize("params", [SamplingParams(8, temperature=0.0), SamplingParams(8)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_fail_the_step(poison: float, params: SamplingParams, device: str) -> None:
    logits = torch.zeros(3, 6, device=device)
    logits[1, 4] = poison
    with pytest.raises(StepFailed, match=r"1 of 3 sampling rows are not finite \(rows \[1\]\)"):
        sample(logits, [params] * 3, [0, 0, 0])
