"""Scores of tokens, against a whole log softmax and a whole sort."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from core.step import TokenLogprobs
from engine import logprobs
from engine.logprobs import LOWEST, score


def expected_scores(logits: Tensor, token_ids: list[int], num_top: list[int]) -> list[TokenLogprobs]:
    scores = []
    for row, token, num in zip(logits.double().log_softmax(-1).numpy(), token_ids, num_top, strict=True):
        order = np.lexsort((np.arange(len(row)), -row))[:num]
        rank = int((row > row[token]).sum()) + 1
        scores.append(TokenLogprobs(row[token], rank, tuple(order.tolist()), tuple(row[order].tolist())))
    return scores


def assert_close(found: list[TokenLogprobs], expected: list[TokenLogprobs], within: float) -> None:
    assert [(each.rank, each.top_ids) for each in found] == [(each.rank, each.top_ids) for each in expected]
    assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=within)
    for one, other in zip(found, expected, strict=True):
        assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=within)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("slice_elements", [1, 300, 1 << 24])
def test_scores_are_those_of_the_whole_distribution(
    dtype: torch.dtype, within: float, slice_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "_MAX_SLICE_ELEMENTS", slice_elements)
    logits = (4 * torch.randn(9, 100, generator=torch.Generator().manual_seed(1))).to(dtype)
    token_ids, num_top = [0, 99, 5, 17, 3, 3, 42, 8, int(logits[8].argmax())], [0, 1, 2, 20, 0, 5, 100, 3, 1]
    found = score(logits, torch.tensor(token_ids), num_top)
    assert_close(found, expected_scores(logits, token_ids, num_top), within)
    assert found[8].rank == 1
    assert found[8].top_logprobs == (found[8].logprob,)


def test_of_equal_logits_the_lower_id_comes_first_and_none_ranks_behind_another() -> None:
    logits = torch.tensor([[1.0, 5.0, 1.0, 5.0, 5.0, 0.0]]).repeat(3, 1)
    found = score(logits, torch.tensor([4, 2, 5]), [2, 4, 6])
    assert [each.rank for each in found] == [1, 4, 6]
    assert [each.top_ids for each in found] == [(1, 3), (1, 3, 4, 0), (1, 3, 4, 0, 2, 5)]


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    (found,) = score(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), [5])
    assert found.top_ids == (1, 0)


def test_what_cannot_come_has_a_finite_score() -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf, 0.0, -2e4]])
    (found,) = score(logits, torch.tensor([1]), [5])
    assert (found.logprob, found.rank) == (LOWEST, 4)
    assert found.top_ids == (0, 3, 4, 1, 2)
    assert found.top_logprobs == pytest.approx((-math.log(2), -math.log(2), LOWEST, LOWEST, LOWEST))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("vocab", [10, 700])
def test_a_row_that_is_not_finite_scores_finite_numbers_and_disturbs_no_other(poison: float, vocab: int) -> None:
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(1))
    expected = score(logits, torch.tensor([1, 2, 3]), [1, 1, 2])
    logits[1, slice(None) if poison < 0 else 4] = poison
    found = score(logits, torch.tensor([1, 2, 3]), [1, 1, 2])
    assert score(logits[1:2], torch.tensor([2]), [1])[0].logprob == LOWEST
    assert found[::2] == expected[::2]
    assert found[1].logprob == LOWEST
    assert all(math.isfinite(each) for each in found[1].top_logprobs)


def test_nothing_is_scored_for_no_rows() -> None:
    assert score(torch.empty(0, 10), torch.empty(0, dtype=torch.int64), []) == []
