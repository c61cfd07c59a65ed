"""The sampler: published vectors, exact distributions, and tokens that depend on nothing but their row."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from core.request import SamplingParams
from engine import draws
from engine.draws import draw, draw_together, kept_probabilities
from engine.penalties import History
from engine.philox import Purpose, keyed_uniforms, philox
from engine.sampler import SampleLine, sample
from tests.engine.exact import adjusted, assert_drawn_from, chi_square_999, probabilities

GREEDY = SamplingParams(8, temperature=0.0)
FILTERS: tuple[dict[str, float], ...] = (
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"top_k": 6, "top_p": 0.8},
    {"temperature": 1.4, "top_k": 7, "top_p": 0.95, "min_p": 0.05},
)
ADJUSTMENTS: tuple[dict[str, object], ...] = (
    {"repetition_penalty": 1.6},
    {"frequency_penalty": 0.4},
    {"presence_penalty": -0.8},
    {"logit_bias": ((2, 1.5), (7, -100.0))},
    {"min_tokens": 6, "stop_token_ids": (4,)},
    {"repetition_penalty": 0.7, "frequency_penalty": 0.3, "presence_penalty": 0.5, "logit_bias": ((5, -1.0),)}
    | {"min_tokens": 6, "temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.02},
)
TOKENS = (0, 1, 1, 5, 3, 5, 5)

draw_many = pytest.mark.parametrize("num", [1_000, pytest.param(20_000, marks=pytest.mark.slow)])


def params_of(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, **changes})


def tokens_of(logits: Tensor, lines: Sequence[SampleLine], eos: tuple[int, ...] = ()) -> list[int]:
    sampled = sample(logits, lines, eos)
    assert sampled.is_finite.all()
    return sampled.token_ids.tolist()


def centred(logits: Tensor) -> Tensor:
    return logits - logits.max(-1, keepdim=True).values


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    words = philox(np.array([counter], np.uint64).T, np.array([key], np.uint64).T)
    assert tuple(words[:, 0].tolist()) == expected


def test_a_number_depends_on_seed_choice_position_and_purpose_only() -> None:
    alone = [keyed_uniforms([seed], [0], [position])[0] for seed, position in ((1, 5), (1, 6), (2, 5))]
    assert keyed_uniforms([1, 1, 2], [0, 0, 0], [5, 6, 5]).tolist() == alone
    assert len({*alone, keyed_uniforms([1], [1], [5])[0]}) == 4
    assert keyed_uniforms([-1], [0], [0]) == keyed_uniforms([2**64 - 1], [0], [0])
    assert keyed_uniforms([1], [0], [5], Purpose.TOKEN)[0] == alone[0]
    assert keyed_uniforms([1], [0], [2**40 + 5])[0] != alone[0]


def test_numbers_are_uniform() -> None:
    for seeds, positions in ((range(16_000), [3] * 16_000), ([9] * 16_000, range(16_000))):
        numbers = keyed_uniforms(seeds, [0] * 16_000, positions)
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, 16, (0, 1))[0]
        assert ((counts - 1000.0) ** 2 / 1000.0).sum() < chi_square_999(15)


@draw_many
@pytest.mark.parametrize("changes", FILTERS)
@pytest.mark.parametrize("is_one_seed", [True, False])
def test_tokens_are_drawn_with_their_exact_probabilities(
    changes: dict[str, float], is_one_seed: bool, num: int
) -> None:
    logits = torch.tensor([0.0, 2.0, -1.0, 1.5, 0.3, 1.0, -2.0, 0.7])
    keys = [(11, place) if is_one_seed else (place, 11) for place in range(num)]
    lines = [SampleLine(params_of(seed=seed, **changes), position) for seed, position in keys]
    expected = probabilities(logits.double().numpy(), params_of(**changes))
    assert_drawn_from(expected, tokens_of(logits.expand(num, -1).contiguous(), lines))


@draw_many
@pytest.mark.parametrize("changes", ADJUSTMENTS)
def test_tokens_are_drawn_with_their_exact_probabilities_after_adjustments(
    changes: dict[str, object], num: int
) -> None:
    logits = [0.1, 2.0, -1.0, 1.5, 0.3, 1.0, -2.0, 0.7]
    params, history = params_of(seed=5, **changes), History(torch.tensor(TOKENS), 3)
    lines = [SampleLine(params, position, history) for position in range(num)]
    expected = probabilities(adjusted(logits, params, TOKENS, 3, (0,)), params)
    assert_drawn_from(expected, tokens_of(torch.tensor(logits).repeat(num, 1), lines, (0,)))


@draw_many
@pytest.mark.parametrize("changes", [{}, {"top_k": 25}, {"top_p": 0.9}, {"min_p": 0.03}, {"top_k": 900, "top_p": 0.97}])
def test_tokens_of_a_large_vocabulary_are_drawn_with_their_exact_probabilities(
    changes: dict[str, float], num: int
) -> None:
    logits = torch.randn(2_100, generator=torch.Generator().manual_seed(4)) * 2
    lines = [SampleLine(params_of(seed=3, **changes), position) for position in range(num)]
    expected = probabilities(logits.double().numpy(), params_of(**changes))
    assert_drawn_from(expected, tokens_of(logits.expand(num, -1).contiguous(), lines))


@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("vocab", [7, 64, 511, 512, 1025, 5000])
def test_both_formulations_draw_the_same_tokens(vocab: int, scale: float) -> None:
    logits = scale * torch.randn(24, vocab, generator=torch.Generator().manual_seed(vocab), dtype=torch.float64)
    logits[::5, ::3] = logits[::5, :1]
    logits[1::5, ::2] = -torch.inf
    numbers = np.linspace(0, 0.999, 24)
    for changes in (*FILTERS, {"top_k": 80}, {"top_p": 1e-9}, {"min_p": 1.0}, {"top_p": 1 - 1e-12}):
        params = params_of(**changes)
        alone = [draw(row.numpy(), float(row.max()), params, u) for row, u in zip(logits, numbers, strict=True)]
        assert draw_together(centred(logits), [params] * 24, numbers).tolist() == alone


def test_nothing_is_read_back_from_a_device() -> None:
    """On tensors without data, whatever asks for a value or for a size that depends on one raises."""
    kinds = ({"temperature": 0.0}, *FILTERS, *ADJUSTMENTS)
    history = History(torch.tensor(TOKENS, device="meta"), 3)
    lines = [SampleLine(params_of(seed=row, **each), row, history) for row, each in enumerate(kinds)]
    sampled = sample(torch.empty(len(lines), 3000, device="meta"), lines, (0,))
    assert sampled.token_ids.shape == sampled.is_finite.shape == (len(lines),)
    with pytest.raises((NotImplementedError, RuntimeError)):
        sampled.token_ids.tolist()


def test_numbers_at_the_ends_draw_the_first_and_the_last_token_that_can_come() -> None:
    logits = torch.zeros(1, 1600)
    logits[:, :3] = logits[:, -3:] = -torch.inf
    for changes in ({}, {"min_p": 0.5}, {"top_p": 1 - 1e-15}):
        ends = [draw(logits[0].numpy(), 0.0, params_of(**changes), number) for number in (0.0, 1 - 2**-53)]
        assert ends == [3, 1596]
        together = draw_together(logits.repeat(2, 1), [params_of(**changes)] * 2, np.array([0.0, 1 - 2**-53]))
        assert together.tolist() == ends


@pytest.mark.parametrize("top_k", [0, 1, 5, 40, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_filters_keep_the_tokens_that_transformers_keeps(
    top_k: int, top_p: float, min_p: float, transformers: ModuleType
) -> None:
    from transformers.generation import logits_process as reference

    logits = torch.randn(5, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3
    scores = reference.TemperatureLogitsWarper(0.8)(None, logits)
    if top_k:
        scores = reference.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = reference.TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = reference.MinPLogitsWarper(min_p)(None, scores)
    mine = kept_probabilities(centred(logits), [params_of(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)] * 5)
    torch.testing.assert_close(mine / mine.sum(-1, keepdim=True), scores.softmax(-1))


@pytest.mark.parametrize(("dtype", "vocab"), [(torch.float32, 50), (torch.float32, 3000), (torch.bfloat16, 700)])
def test_a_row_draws_the_same_token_whatever_is_in_the_batch(dtype: torch.dtype, vocab: int) -> None:
    num = 2 * len(FILTERS) + 2 * len(ADJUSTMENTS) + 2
    logits = torch.randn(num, vocab, generator=torch.Generator().manual_seed(1)).to(dtype)
    kinds = ({"temperature": 0.0}, *FILTERS, *ADJUSTMENTS)
    histories = [History(torch.randint(0, 50, (row + 2,)), row // 2 + 1) for row in range(num)]
    lines = [
        SampleLine(params_of(**{"seed": row, "choice": row % 3} | kinds[row % len(kinds)]), 100 + row, histories[row])
        for row in range(num)
    ]
    together = tokens_of(logits, lines, (0, 3))
    assert together == [tokens_of(logits[row : row + 1], [lines[row]], (0, 3))[0] for row in range(num)]
    some = [10, 2, 20, 5, 9, 4]
    assert tokens_of(logits[some], [lines[row] for row in some], (0, 3)) == [together[row] for row in some]


def test_the_choices_of_one_prompt_draw_their_own_tokens() -> None:
    logits = torch.zeros(200, 1000)
    lines = [SampleLine(params_of(seed=4, choice=choice), 7) for choice in range(200)]
    assert len(set(tokens_of(logits, lines))) > 150


def test_greedy_takes_the_largest_logit_beside_rows_that_draw() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    best = logits.argmax(-1).tolist()
    lines = [SampleLine(GREEDY, 1), SampleLine(params_of(), 2), SampleLine(GREEDY, 3)]
    assert tokens_of(logits[::2], lines[::2]) == best[::2]
    assert tokens_of(logits, lines)[::2] == best[::2]


def test_greedy_takes_the_largest_logit_after_adjustments_and_the_logits_stay_as_they_are() -> None:
    logits = torch.tensor([[3.0, 2.9, 0.0, 1.0]]).repeat(4, 1)
    history, before = History(torch.tensor([0, 0, 1]), 1), logits.clone()
    changes: tuple[dict[str, object], ...] = (
        {"repetition_penalty": 4.0},
        {"presence_penalty": 0.2, "frequency_penalty": -0.3},
        {"logit_bias": ((2, 4.0),)},
        {"min_tokens": 3, "stop_token_ids": (1,)},
    )
    lines = [SampleLine(params_of(temperature=0.0, **each), 3, history) for each in changes]
    assert tokens_of(logits, lines, (0,)) == [3, 0, 2, 3]
    assert torch.equal(logits, before)


def test_a_tiny_temperature_is_greedy_and_tokens_of_no_probability_never_come() -> None:
    logits = torch.tensor([[1e4, -torch.inf, 9.9e3, -1e4]])
    for temperature in (1e-30, 1e-300):
        assert tokens_of(logits, [SampleLine(params_of(temperature=temperature), 0)]) == [0]
    flat = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(500, 1)
    assert set(tokens_of(flat, [SampleLine(params_of(), position) for position in range(500)])) == {1, 3}


def test_equal_logits_at_the_edge_of_a_filter_stay_together() -> None:
    logits = torch.tensor([[0.0, -1.0, -1.0, -2.0]])
    for changes in ({"top_k": 2}, {"top_p": 0.6}, {"top_k": 2, "top_p": 0.7}, {"min_p": 0.3}):
        assert (kept_probabilities(logits, [params_of(**changes)]) > 0).tolist() == [[True, True, True, False]]
        drawn = tokens_of(logits.repeat(200, 1), [SampleLine(params_of(**changes), place) for place in range(200)])
        assert set(drawn) == {0, 1, 2}


def test_ties_at_the_edge_of_top_k_weigh_the_same_beside_a_row_that_keeps_more() -> None:
    logits = torch.tensor([[0.0, -0.1, -0.1, -0.1, -0.1]]).repeat(2, 1)
    params = [params_of(top_k=2, top_p=0.5), params_of(top_k=4)]
    assert torch.equal(kept_probabilities(logits, params)[:1], kept_probabilities(logits[:1], params[:1]))


def test_top_k_finds_the_same_whether_groups_or_the_whole_vocabulary_are_ordered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = np.random.default_rng(5).normal(size=1000).round(2)
    for limit in (1, 3, 14, 15, 16, 90, 999):
        expected = np.flatnonzero(logits >= np.sort(logits)[-limit])
        for group in (2, 64, 2000):
            monkeypatch.setattr(draws, "_GROUP", group)
            assert draws.largest(logits, limit).tolist() == expected.tolist()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {}, {"top_k": 2, "top_p": 0.9}, *ADJUSTMENTS])
def test_a_row_whose_logits_are_not_finite_is_told_and_disturbs_no_other(
    poison: float, changes: dict[str, object]
) -> None:
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    lines = [SampleLine(params_of(seed=row, **changes), row, History(torch.tensor(TOKENS), 3)) for row in range(3)]
    expected = tokens_of(logits, lines, (0,))
    logits[1, slice(None) if poison == -float("inf") else 0] = poison
    sampled = sample(logits, lines, (0,))
    assert sampled.is_finite.tolist() == [True, False, True]
    assert sampled.token_ids[::2].tolist() == expected[::2]
    assert 0 <= sampled.token_ids[1] < 8
