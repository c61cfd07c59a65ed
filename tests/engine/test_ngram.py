"""Drafts from a row's own past: what is proposed, and that it changes nothing but the number of steps."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from core.request import SamplingParams
from engine.ngram import LONGEST_NGRAM, SHORTEST_NGRAM, Drafter, Lookup, verify
from engine.sampler import SampleLine, sample
from tests.engine.exact import assert_drawn_from


def proposed_by_search(tokens: Sequence[int], max_drafts: int) -> list[int]:
    """Looks through all of the row, from its end, for each length."""
    tokens = list(tokens)
    for length in range(LONGEST_NGRAM, SHORTEST_NGRAM - 1, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == tokens[len(tokens) - length :]:
                period = len(tokens) - length - start
                for _ in range(max_drafts):
                    tokens.append(tokens[-period])
                return tokens[len(tokens) - max_drafts :]
    return []


@pytest.mark.parametrize("alphabet", [1, 2, 3, 8])
def test_what_followed_the_longest_and_latest_earlier_occurrence_is_proposed(alphabet: int) -> None:
    random, num_found = np.random.default_rng(alphabet), 0
    for _ in range(20):
        tokens = random.integers(0, alphabet, 40).tolist()
        lookup = Lookup(tokens[:5])
        for end in range(5, 40):
            for most in (0, 1, 3, 50):
                assert lookup.propose(most) == proposed_by_search(tokens[:end], most)
            num_found += bool(lookup.propose(1))
            lookup.append(tokens[end])
        assert len(lookup) == 40
    assert num_found > 100


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([1], []),
        ([1, 1], []),
        ([1, 2, 3, 9, 8], []),
        ([7, 1, 2, 3, 4, 5, 1, 2], [3, 4, 5]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),
        ([0, 1, 2, 3, 9, 1, 2, 3, 7, 0, 1, 2, 3], [9, 1, 2]),
        ([5, 6, 5, 6], [5, 6, 5]),
        ([4, 4, 4], [4, 4, 4]),
    ],
)
def test_longer_matches_win_then_later_ones_and_a_cycle_goes_on(tokens: list[int], expected: list[int]) -> None:
    assert Lookup(tokens).propose(3) == expected


def test_what_is_kept_is_the_right_drafts_and_the_token_after_them() -> None:
    assert verify((), (7,)) == (7,)
    assert verify((1, 2, 3), (1, 2, 3, 4)) == (1, 2, 3, 4)
    assert verify((1, 2, 3), (1, 9, 3, 4)) == (1, 9)
    assert verify((1, 2, 3), (9, 2, 3, 4)) == (9,)


class Mimic:
    """A drafter that is right with some probability, and knows nothing."""

    def __init__(self, chain: "Chain", right: float, seed: int) -> None:
        self._chain, self._right, self._random, self._known = chain, right, np.random.default_rng(seed), []

    def append(self, token: int) -> None:
        self._known.append(token)

    def propose(self, max_drafts: int) -> list[int]:
        known = list(self._known)
        for _ in range(max_drafts):
            is_right = self._random.random() < self._right
            known.append(self._chain.next(known) if is_right else int(self._random.integers(5)))
        return known[len(self._known) :]


class Chain:
    """A model whose logits depend on the last two tokens."""

    def __init__(self, params: SamplingParams, num_tokens: int = 5) -> None:
        self.logits = 1.5 * torch.randn(num_tokens, num_tokens, num_tokens, generator=torch.Generator().manual_seed(8))
        self.params = params

    def sampled(self, known: Sequence[int], drafts: Sequence[int]) -> list[int]:
        """The tokens drawn after `known` and after each draft, in one call."""
        tokens = [*known, *drafts]
        ends = range(len(known), len(tokens) + 1)
        logits = torch.stack([self.logits[tokens[end - 2], tokens[end - 1]] for end in ends])
        return sample(logits, [SampleLine(self.params, end) for end in ends]).token_ids.tolist()

    def next(self, known: Sequence[int]) -> int:
        return self.sampled(known, ())[0]

    def generate(
        self, prompt: Sequence[int], num: int, drafter: Drafter | None, most: int = 4
    ) -> tuple[list[int], int]:
        known, num_steps = list(prompt), 0
        while len(known) < len(prompt) + num:
            drafts = drafter.propose(most) if drafter else []
            for token in verify(drafts, self.sampled(known, drafts)):
                known.append(token)
                if drafter:
                    drafter.append(token)
            num_steps += 1
        return known[len(prompt) : len(prompt) + num], num_steps


DRAFTERS: dict[str, Callable[[Chain, Sequence[int]], Drafter]] = {
    "lookup": lambda chain, prompt: Lookup(prompt),
    "often right": lambda chain, prompt: told(Mimic(chain, 0.8, 1), prompt),
    "mostly wrong": lambda chain, prompt: told(Mimic(chain, 0.1, 2), prompt),
}


def told(drafter: Mimic, prompt: Sequence[int]) -> Mimic:
    for token in prompt:
        drafter.append(token)
    return drafter


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {}, {"temperature": 0.5, "top_k": 3}, {"top_p": 0.8}, {"min_p": 0.1, "choice": 3}]
)
def test_a_stream_is_the_same_with_and_without_drafts(name: str, changes: dict[str, float]) -> None:
    total = 0
    for seed in range(3):
        chain = Chain(SamplingParams(**{"max_tokens": 99, "seed": seed, **changes}))
        prompt = (seed % 5, 1, 2)
        expected, _ = chain.generate(prompt, 50, None)
        found, num_steps = chain.generate(prompt, 50, DRAFTERS[name](chain, prompt))
        assert found == expected
        total += num_steps
    assert total < 150, "some drafts were confirmed"


@pytest.mark.parametrize(
    ("seed", "num"), [(0, 150), *(pytest.param(seed, 1_000, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_verifying_is_sampling_one_after_the_other(seed: int, num: int) -> None:
    """Whatever is drafted, what is kept is what plain sampling gives."""
    random, chain = np.random.default_rng(seed), Chain(SamplingParams(99, seed=seed, temperature=0.7))
    for _ in range(num):
        known, drafts = random.integers(0, 5, 6).tolist(), []
        for _ in range(int(random.integers(0, 6))):
            is_right = random.random() < 0.7
            drafts.append(chain.next([*known, *drafts]) if is_right else int(random.integers(5)))
        kept = verify(drafts, chain.sampled(known, drafts))
        expected: list[int] = []
        while len(expected) < len(kept):
            expected.append(chain.next([*known, *expected]))
        assert list(kept) == expected
        assert 1 <= len(kept) <= len(drafts) + 1
        assert len(kept) == len(drafts) + 1 or kept[-1] != drafts[len(kept) - 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
def test_with_drafts_tokens_come_with_the_probabilities_of_the_model(name: str) -> None:
    """The third token of many streams, against the product of the chain's own matrices."""
    pairs, prompt, tokens = Chain(SamplingParams(9)).logits.double().softmax(-1).numpy(), (1, 2, 1, 2), []
    expected = sum(
        pairs[1, 2, first] * pairs[2, first, second] * pairs[first, second] for first in range(5) for second in range(5)
    )
    for seed in range(1_500):
        chain = Chain(SamplingParams(9, seed=seed))
        tokens.append(chain.generate(prompt, 3, DRAFTERS[name](chain, prompt))[0][2])
    assert_drawn_from(expected, tokens)
