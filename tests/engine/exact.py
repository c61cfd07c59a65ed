"""What tokens should come, computed one token at a time from the definitions; and whether counts agree with it."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.request import SamplingParams

Floats = npt.NDArray[np.float64]


def adjusted(
    logits: Sequence[float],
    params: SamplingParams,
    token_ids: Sequence[int],
    num_prompt_tokens: int,
    eos_token_ids: Sequence[int] = (),
) -> Floats:
    """Logits after bias, `min_tokens` and penalties."""
    answer, out = list(token_ids[num_prompt_tokens:]), []
    biases = dict(params.logit_bias)
    for token, logit in enumerate(logits):
        value = logit + biases.get(token, 0.0)
        if len(answer) < params.min_tokens and token in (*eos_token_ids, *params.stop_token_ids):
            value = -math.inf
        if token in token_ids:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        value -= params.frequency_penalty * answer.count(token)
        value -= params.presence_penalty * (token in answer)
        out.append(value)
    return np.array(out)


def probabilities(logits: Floats, params: SamplingParams) -> Floats:
    """After temperature, top-k, top-p and min-p; logits differ from each other, so that no ties matter."""
    weights = np.exp((logits - logits.max()) / params.temperature)
    order = np.argsort(-weights)
    kept = order[: params.top_k or len(order)]
    masses = weights[kept] / weights[kept].sum()
    kept = kept[np.cumsum(masses) - masses < params.top_p]
    kept = kept[weights[kept] >= params.min_p * weights.max()]
    result = np.zeros(len(weights))
    result[kept] = weights[kept] / weights[kept].sum()
    return result


def assert_drawn_from(expected: Floats, tokens: Sequence[int]) -> None:
    """A chi-square test at 99.9 %; tokens that are expected fewer than 8 times count as one."""
    counts, expected = np.bincount(tokens, minlength=len(expected)), expected * len(tokens)
    assert not counts[expected == 0].any(), "a token came that cannot come"
    common = expected >= 8
    found, wanted = list(counts[common]), list(expected[common])
    if expected[~common].sum() > 0:
        found.append(counts[~common].sum())
        wanted.append(max(expected[~common].sum(), 1.0))
    statistic = sum((have - want) ** 2 / want for have, want in zip(found, wanted, strict=True))
    assert statistic < chi_square_999(max(len(found) - 1, 1)), (statistic, len(found))


def chi_square_999(degrees: int) -> float:
    """The 99.9 % point. Source: Wilson and Hilferty (1931); within 2 % of the tables from one degree on."""
    spread = 2.0 / (9.0 * degrees)
    return degrees * float(1.0 - spread + 3.0902 * spread**0.5) ** 3
