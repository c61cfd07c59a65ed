"""The sampler on a GPU against the CPU: a row that fails over between the two must go on with the same tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from core.request import SamplingParams
from engine.logprobs import score
from engine.penalties import History
from engine.sampler import SampleLine, sample

pytestmark = pytest.mark.gpu

KINDS: tuple[dict[str, object], ...] = (
    {"temperature": 0.0},
    {},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9},
    {"top_k": 5},
    {"top_p": 0.5},
    {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 100, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"frequency_penalty": 0.3, "presence_penalty": 0.6, "min_tokens": 40, "stop_token_ids": (9,)},
    {"top_p": 0.9, "logit_bias": ((5, 4.0), (6, -3.0)), "repetition_penalty": 0.8},
)


def lines_of(rows: int, vocab: int, device: str) -> list[SampleLine]:
    tokens = torch.randint(0, vocab, (rows, 60), generator=torch.Generator().manual_seed(2)).to(device)
    return [
        SampleLine(
            SamplingParams(**{"max_tokens": 8, "seed": row, "choice": row % 2} | KINDS[row % len(KINDS)]),
            row,
            History(tokens[row], 30),
        )
        for row in range(rows)
    ]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("dtype", "rows", "vocab"),
    [(torch.float64, 210, 32_003), (torch.float32, 70, 517), (torch.float16, 70, 517), (torch.bfloat16, 70, 517)],
)
def test_the_same_logits_give_the_same_tokens_as_on_the_cpu(
    dtype: torch.dtype, rows: int, vocab: int, device: str
) -> None:
    logits = (3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1))).to(dtype)
    logits[:: len(KINDS), 100] = logits[7 :: len(KINDS), 100] = 50.0  # greedy: halves have ties, either is right
    expected = sample(logits, lines_of(rows, vocab, "cpu"), (0, 3)).token_ids.tolist()
    assert sample(logits.to(device), lines_of(rows, vocab, device), (0, 3)).token_ids.tolist() == expected
    assert len(set(expected)) > rows // 4


def test_the_host_never_waits(device: str) -> None:
    logits, lines = torch.randn(50, 2_000, device=device), lines_of(50, 2_000, device)
    sample(logits, lines, (0, 3))
    with no_waiting():
        sampled = sample(logits, lines, (0, 3))
        sample(logits[:1], lines[:1], (0, 3))
    assert sampled.is_finite.all()


@pytest.mark.parametrize("params", [SamplingParams(8, temperature=0.0), SamplingParams(8, top_k=3, top_p=0.5)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_finite_is_told_and_disturbs_no_other(
    poison: float, params: SamplingParams, device: str
) -> None:
    logits = torch.randn(3, 6, device=device)
    lines = [SampleLine(params, position) for position in range(3)]
    expected = sample(logits, lines).token_ids.tolist()
    logits[1, 4] = poison
    sampled = sample(logits, lines)
    assert sampled.is_finite.tolist() == [True, False, True]
    assert sampled.token_ids[::2].tolist() == expected[::2]
    assert 0 <= sampled.token_ids[1].item() < 6


def test_scores_are_those_of_the_cpu(device: str) -> None:
    logits = torch.randn(20, 5_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 4
    logits[3, ::2] = logits[4, 7] = 9.0
    token_ids, num_top = torch.arange(0, 100, 5), [row % 6 for row in range(20)]
    expected = score(logits, token_ids, num_top)
    found = score(logits.to(device), token_ids.to(device), num_top)
    for one, other in zip(found, expected, strict=True):
        assert (one.rank, one.top_ids) == (other.rank, other.top_ids)
        assert (one.logprob, *one.top_logprobs) == pytest.approx((other.logprob, *other.top_logprobs), abs=1e-9)
