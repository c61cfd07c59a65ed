"""Biases, forbidden ends and penalties, against definitions that count one token at a time."""

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from core.request import SamplingParams
from engine.penalties import History, adjust, adjusts, needs_history
from tests.engine.exact import adjusted


def params_of(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 50, **changes})


def adjusted_alone(
    logits: Tensor, params: SamplingParams, history: History | None = None, eos: tuple[int, ...] = ()
) -> Tensor:
    own = logits.clone()[None]
    adjust(own, [params], [history], eos)
    return own[0]


def random_case(random: np.random.Generator, vocab: int) -> tuple[SamplingParams, list[int], int]:
    """Parameters of which each is set half of the time, and tokens that repeat."""
    asked: dict[str, object] = {
        "repetition_penalty": random.uniform(0.5, 2),
        "frequency_penalty": random.uniform(-2, 2),
        "presence_penalty": random.uniform(-2, 2),
        "min_tokens": int(random.integers(0, 12)),
        "stop_token_ids": tuple(random.integers(0, vocab, 2).tolist()),
        "logit_bias": tuple((token, random.uniform(-9, 9)) for token in random.permutation(vocab)[:3].tolist()),
    }
    params = params_of(**{name: value for name, value in asked.items() if random.random() < 0.5})
    tokens = random.integers(0, vocab // 2, random.integers(1, 20)).tolist()
    return params, tokens, int(random.integers(1, len(tokens) + 1))


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_adjusted_together_as_the_definitions_say(seed: int) -> None:
    random, vocab, eos = np.random.default_rng(seed), 30, (3, 11)
    cases = [random_case(random, vocab) for _ in range(13)]
    logits = torch.from_numpy(random.normal(size=(13, vocab)) * 3)
    histories = [History(torch.tensor(tokens), num) if needs_history(params) else None for params, tokens, num in cases]
    own = logits.clone()
    adjust(own, [params for params, _, _ in cases], histories, eos)
    for row, (params, tokens, num_prompt) in enumerate(cases):
        expected = adjusted(logits[row].tolist(), params, tokens, num_prompt, eos)
        np.testing.assert_allclose(own[row].numpy(), expected, rtol=1e-14, atol=1e-14)
        assert torch.equal(adjusted_alone(logits[row], params, histories[row], eos), own[row])
        assert adjusts(params) or torch.equal(own[row], logits[row])


@pytest.mark.parametrize("seed", range(3))
def test_penalties_are_those_of_dense_counts(seed: int) -> None:
    """vLLM's formulas, over tables of counts of the whole vocabulary."""
    random, num, vocab = np.random.default_rng(seed), 6, 40
    logits = torch.from_numpy(random.normal(size=(num, vocab)).astype(np.float32) * 3)
    tokens = torch.from_numpy(random.integers(0, vocab, (num, 25)))
    prompts = random.integers(1, 26, num).tolist()
    repetition, frequency, presence = (torch.from_numpy(random.uniform(0.3, 1.9, (num, 1))).float() for _ in range(3))
    in_prompt, counts = torch.zeros(num, vocab), torch.zeros(num, vocab)
    for row, num_prompt in enumerate(prompts):
        in_prompt[row, tokens[row, :num_prompt]] = 1
        counts[row] = torch.bincount(tokens[row, num_prompt:], minlength=vocab)
    factors = torch.where((in_prompt > 0) | (counts > 0), repetition, 1.0)
    expected = logits * torch.where(logits > 0, 1.0 / factors, factors)
    expected = expected - frequency * counts - presence * (counts > 0)
    params = [
        params_of(repetition_penalty=float(r), frequency_penalty=float(f), presence_penalty=float(p))
        for r, f, p in zip(repetition, frequency, presence, strict=True)
    ]
    own = logits.clone()
    adjust(own, params, [History(*each) for each in zip(tokens, prompts, strict=True)], ())
    np.testing.assert_allclose(own.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_no_end_can_come_before_there_are_min_tokens() -> None:
    logits = torch.zeros(9)
    params = params_of(min_tokens=2, stop_token_ids=(5, 7))
    for num_answer, is_masked in ((0, True), (1, True), (2, False), (3, False)):
        history = History(torch.zeros(4 + num_answer, dtype=torch.int64), 4)
        own = adjusted_alone(logits, params, history, (2, 5))
        assert own.isneginf().nonzero().flatten().tolist() == ([2, 5, 7] if is_masked else [])


def test_ends_are_masked_even_where_they_would_not_end_the_answer() -> None:
    own = adjusted_alone(
        torch.zeros(4), params_of(min_tokens=3, ignore_eos=True), History(torch.tensor([1, 2]), 2), (3,)
    )
    assert own.tolist() == [0, 0, 0, -math.inf]


def test_a_bias_does_not_bring_an_end_back() -> None:
    params = params_of(min_tokens=3, logit_bias=((3, 100.0), (0, 2.5)))
    own = adjusted_alone(torch.zeros(4), params, History(torch.tensor([1, 2]), 2), (3,))
    assert own.tolist() == [2.5, 0, 0, -math.inf]


def test_tokens_outside_the_vocabulary_cannot_come_and_are_passed_over() -> None:
    params = params_of(min_tokens=3, stop_token_ids=(4, 900), logit_bias=((4, 3.0), (1, 1.0)))
    own = torch.zeros(2, 4)
    adjust(own, [params, params_of()], [History(torch.tensor([1, 2]), 2), None], (3, 8))
    assert own.tolist() == [[0, 1, 0, -math.inf], [0, 0, 0, 0]]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(poison: float) -> None:
    logits = torch.tensor([0.0, 1.0, poison])
    params = params_of(min_tokens=3, repetition_penalty=1.3, presence_penalty=0.5, logit_bias=((2, -100.0),))
    own = adjusted_alone(logits, params, History(torch.tensor([2, 2, 1]), 1), (2,))
    assert not own.max().isfinite()


@pytest.mark.parametrize(
    ("changes", "is_needed"),
    [
        ({}, False),
        ({"logit_bias": ((1, 1.0),)}, False),
        ({"temperature": 0.0, "top_k": 3, "stop_token_ids": (1,)}, False),
        ({"min_tokens": 1}, True),
        ({"repetition_penalty": 0.9}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"presence_penalty": 0.1}, True),
    ],
)
def test_history_is_asked_for_where_it_is_used(changes: dict[str, object], is_needed: bool) -> None:
    assert needs_history(params_of(**changes)) == is_needed
    assert adjusts(params_of(**changes)) == (is_needed or "logit_bias" in changes)


def test_repetition_and_ends_are_those_of_transformers(transformers: ModuleType) -> None:
    from transformers.generation import logits_process as reference

    logits = torch.randn(5, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4
    tokens = torch.randint(0, 60, (5, 30), generator=torch.Generator().manual_seed(2))
    bias = {(7,): 1.5, (20,): -4.0}
    for min_tokens in (9, 10, 11):
        scores = reference.SequenceBiasLogitsProcessor(bias)(tokens, logits)
        ends = reference.MinNewTokensLengthLogitsProcessor(20, min_tokens, [4, 9], device="cpu")
        scores = reference.RepetitionPenaltyLogitsProcessor(1.4)(tokens, ends(tokens, scores))
        own = logits.clone()
        params = params_of(min_tokens=min_tokens, repetition_penalty=1.4, logit_bias=((7, 1.5), (20, -4.0)))
        adjust(own, [params] * 5, [History(each, 20) for each in tokens], (4, 9))
        torch.testing.assert_close(own, scores)
