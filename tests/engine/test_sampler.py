"""The sampler: published vectors, exact distributions, and tokens that depend on nothing but their row."""

from types import ModuleType

import numpy as np
import pytest
import torch

from core.errors import StepFailed
from core.request import SamplingParams
from engine.sampler import filtered_probabilities, keyed_uniforms, philox, sample

GREEDY = SamplingParams(8, temperature=0.0)
CHI_SQUARE_999 = {7: 24.32, 15: 37.70}
"""The 99.9 % points of the chi-square distribution, by degrees of freedom."""


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], np.uint64) for value in values)


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
    assert tuple(int(word[0]) for word in philox(words(*counter), words(*key))) == expected


def test_a_number_depends_on_seed_choice_position_and_purpose_only() -> None:
    alone = [keyed_uniforms([seed], [position])[0] for seed, position in ((1, 5), (1, 6), (2, 5))]
    assert keyed_uniforms([1, 1, 2], [5, 6, 5]).tolist() == alone
    assert len({*alone, keyed_uniforms([1], [5], choice=1)[0]}) == 4
    assert keyed_uniforms([-1], [0]) == keyed_uniforms([2**64 - 1], [0])


def test_numbers_are_uniform() -> None:
    for seeds, positions in ((range(40_000), [3] * 40_000), ([9] * 40_000, range(40_000))):
        numbers = keyed_uniforms(seeds, positions)
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, 16, (0, 1))[0]
        assert ((counts - 2500.0) ** 2 / 2500.0).sum() < CHI_SQUARE_999[15]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.5},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.8},
    ],
)
def test_tokens_are_drawn_with_their_exact_probabilities(changes: dict[str, float]) -> None:
    logits = torch.tensor([0.0, 2.0, -1.0, 1.5, 0.3, 1.0, -2.0, 0.7])
    params = SamplingParams(**{"max_tokens": 8, "seed": 11, **changes})
    exact = exact_probabilities(logits.tolist(), params)
    num = 20_000
    tokens = np.array(sample(logits.expand(num, -1), [params] * num, range(num)))
    counts = np.bincount(tokens, minlength=8)
    assert not counts[exact == 0].any()
    expected = exact[exact > 0] * num
    assert ((counts[exact > 0] - expected) ** 2 / expected).sum() < CHI_SQUARE_999[7]


def exact_probabilities(logits: list[float], params: SamplingParams) -> np.ndarray:
    """Straight from the definitions, one token at a time."""
    weights = np.exp(np.array(logits) / params.temperature)
    order = np.argsort(-weights)
    kept = order[: params.top_k or len(order)]
    masses = weights[kept] / weights[kept].sum()
    kept = kept[np.cumsum(masses) - masses < params.top_p]
    kept = kept[weights[kept] >= params.min_p * weights.max()]
    probabilities = np.zeros(len(weights))
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


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
    params = [SamplingParams(8, temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)] * 5
    mine = filtered_probabilities(logits - logits.max(-1, keepdim=True).values, params)
    torch.testing.assert_close(mine / mine.sum(-1, keepdim=True), scores.softmax(-1))


def test_a_row_draws_the_same_token_whatever_is_in_the_batch() -> None:
    logits = torch.randn(12, 50, generator=torch.Generator().manual_seed(1))
    kinds = (
        {},
        {"top_k": 4},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 0.0},
        {"temperature": 1.7, "top_k": 9, "top_p": 0.9},
    )
    params = [SamplingParams(**{"max_tokens": 8, "seed": row, **kinds[row % len(kinds)]}) for row in range(12)]
    positions = list(range(100, 112))
    together = sample(logits, params, positions)
    assert together == [sample(logits[row : row + 1], [params[row]], [positions[row]])[0] for row in range(12)]
    some = [10, 2, 5, 4]
    assert sample(logits[some], [params[row] for row in some], [positions[row] for row in some]) == [
        together[row] for row in some
    ]


def test_greedy_takes_the_largest_logit_beside_rows_that_draw() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    best = logits.argmax(-1).tolist()
    assert sample(logits, [GREEDY] * 3, [1, 2, 3]) == best
    assert sample(logits, [GREEDY, SamplingParams(8), GREEDY], [1, 2, 3])[::2] == best[::2]


def test_a_tiny_temperature_is_greedy_and_tokens_of_no_probability_never_come() -> None:
    logits = torch.tensor([[1e4, -torch.inf, 9.9e3, -1e4]])
    assert sample(logits, [SamplingParams(8, temperature=1e-30)], [0]) == [0]
    flat = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(500, -1)
    assert set(sample(flat, [SamplingParams(8)] * 500, range(500))) == {1, 3}


def test_equal_logits_at_the_edge_of_a_filter_stay_together() -> None:
    probabilities = filtered_probabilities(torch.tensor([[0.0, -1.0, -1.0, -2.0]]), [SamplingParams(8, top_k=2)])
    assert (probabilities > 0).tolist() == [[True, True, True, False]]


def test_top_p_gives_the_same_whether_a_part_of_the_vocabulary_is_ordered_or_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.randn(24, 300, generator=torch.Generator().manual_seed(5)) * 4
    masses = (1e-6, 0.3, 0.9, 0.999)
    params = [SamplingParams(8, top_p=masses[row % 4], top_k=(0, 7, 400)[row % 3]) for row in range(24)]
    expected = filtered_probabilities(logits, params)
    for num_ranks in (1, 5, 40, 300):
        monkeypatch.setattr("engine.sampler._FIRST_RANKS", num_ranks)
        assert torch.equal(filtered_probabilities(logits, params), expected)


def test_ties_at_the_edge_of_top_k_weigh_the_same_beside_a_row_that_keeps_more() -> None:
    logits = torch.tensor([[0.0, -0.1, -0.1, -0.1, -0.1]]).repeat(2, 1)
    params = [SamplingParams(8, top_k=2, top_p=0.5), SamplingParams(8, top_k=4)]
    together = filtered_probabilities(logits, params)
    assert torch.equal(together[:1], filtered_probabilities(logits[:1], params[:1]))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(8)])
def test_logits_that_are_not_finite_fail_the_step(poison: float, params: SamplingParams) -> None:
    logits = torch.zeros(3, 6)
    logits[1, 4] = poison
    with pytest.raises(StepFailed, match=r"1 of 3 sampling rows are not finite \(rows \[1\]\)"):
        sample(logits, [params] * 3, [0, 0, 0])
