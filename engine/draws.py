"""Drawing from filtered distributions, in two formulations: row by row on a CPU, all rows together on a device.

Both keep, in this order, the `top_k` largest logits, of these the most probable that together hold `top_p` (after
temperature), and those of at least `min_p` times the probability of the best. Tokens equal to the last one kept are
kept with it, so the outcome does not depend on how a sort breaks ties. The token is the first, in vocabulary order,
whose cumulated probability exceeds the row's uniform number times the whole; sums are float64.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.request import SamplingParams

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_BLOCK = 512
"""Probabilities summed at a time before one block is cumulated: 14 us a row of 32,000 on one core, 49 for all."""

_GROUP = 64
"""Logits of which first only the largest is looked at for top-k: 33 us a row of 32,000, against 70 without."""

_SLACK = 0.999
"""Keeps a bound on the safe side of rounding."""


# ── row by row ───────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(logits: Floats, best: float, params: SamplingParams, uniform: float) -> int:
    """Draw one token. `best` is the largest logit, and finite. Shapes: [vocab]."""
    token_ids = None
    if 0 < params.top_k < len(logits):
        token_ids = largest(logits, params.top_k)
        logits = logits[token_ids]
    probabilities = _probabilities(logits, best, params.temperature)
    if params.top_p < 1.0 or params.min_p > 0.0:
        kept = _kept(probabilities, params)
        place = int(kept[_place(np.cumsum(probabilities[kept], dtype=np.float64), uniform)])
    else:
        place = _place_by_blocks(probabilities, uniform)
    return place if token_ids is None else int(token_ids[place])


def largest(logits: Floats, limit: int) -> Integers:
    """Places of the `limit` largest, in order, and of what equals the last of them. Shapes: [vocab] -> [found].

    The `limit`-th largest of some groups' largest is a bound that few other logits reach.
    """
    num_groups = len(logits) // _GROUP
    if limit >= num_groups:
        return np.flatnonzero(logits >= np.partition(logits, -limit)[-limit])
    tops = logits[: num_groups * _GROUP].reshape(_GROUP, num_groups).max(axis=0)
    near = np.flatnonzero(logits >= np.partition(tops, -limit)[-limit])
    if len(near) <= limit:  # fewer only where logits hold NaN
        return near
    values = logits[near]
    found: Integers = near[values >= np.partition(values, -limit)[-limit]]
    return found


def _probabilities(logits: Floats, best: float, temperature: float) -> Floats:
    scaled = torch.from_numpy(logits)
    if temperature != 1.0:
        scaled = (scaled - best).div_(max(temperature, torch.finfo(scaled.dtype).tiny))
    probabilities: Floats = scaled.softmax(-1).numpy()
    return probabilities


def _kept(probabilities: Floats, params: SamplingParams) -> Integers:
    """Places that top-p and min-p keep.

    Tokens below `(1 - top_p) / vocab` hold less than `1 - top_p` together, so that only those above it are ordered.
    """
    floor = params.min_p * float(probabilities.max()) if params.min_p > 0.0 else 0.0
    least = _SLACK * (1.0 - params.top_p) / len(probabilities)
    near = np.flatnonzero(probabilities >= max(floor, least))
    if params.top_p >= 1.0:
        return near
    values = probabilities[near]
    return near[values >= _top_p_floor(values, params.top_p)]


def _top_p_floor(probabilities: Floats, mass: float) -> float:
    """The last of the most probable that together hold `mass`."""
    ordered = np.sort(probabilities)[::-1]
    before = np.cumsum(ordered, dtype=np.float64)[:-1]
    return float(ordered[np.count_nonzero(before < mass)])


def _place(cumulated: npt.NDArray[np.float64], uniform: float) -> int:
    return int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))


def _place_by_blocks(probabilities: Floats, uniform: float) -> int:
    """As `_place` of all cumulated: first the block, then the place in it."""
    num_whole = len(probabilities) // _BLOCK * _BLOCK
    sums = np.einsum("ij->i", probabilities[:num_whole].reshape(-1, _BLOCK), dtype=np.float64)
    cumulated = np.cumsum(np.append(sums, probabilities[num_whole:].sum(dtype=np.float64)))
    target = uniform * cumulated[-1]
    block = int(np.searchsorted(cumulated, target, side="right"))
    inside = np.cumsum(probabilities[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    left = target - cumulated[block - 1] if block else target
    place = int(np.searchsorted(inside, left, side="right"))
    if place == len(inside):  # two orders of summing differ in the last bit: the block's last token of any weight
        place = int(np.searchsorted(inside, inside[-1]))
    return block * _BLOCK + place


# ── together ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw_together(centred: Tensor, params: Sequence[SamplingParams], uniforms: npt.NDArray[np.float64]) -> Tensor:
    """Draw one token a row, without waiting for the device. Shapes: [rows, vocab], each row's largest 0 -> [rows]."""
    cumulated = kept_probabilities(centred, params).cumsum(-1, dtype=torch.float64)
    targets = _column(uniforms.tolist(), cumulated) * cumulated[:, -1:]
    places = torch.searchsorted(cumulated, targets, right=True).flatten()
    return places.clamp_(max=centred.shape[-1] - 1)  # a row that holds NaN has no place


def kept_probabilities(centred: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities of the tokens that are kept, not normalised again; 0 for the others.

    Shapes: [rows, vocab], each row's largest 0 -> the same.
    """
    limits, vocab = [each.top_k for each in params], centred.shape[-1]
    if any(0 < limit < vocab for limit in limits):
        centred = centred.masked_fill(centred < _top_k_floors(centred, limits), -torch.inf)
    tiny = torch.finfo(centred.dtype).tiny
    probabilities = (centred / _column([max(each.temperature, tiny) for each in params], centred)).softmax(-1)
    floors = _column([each.min_p for each in params], centred) * probabilities.amax(-1, keepdim=True)
    if any(each.top_p < 1.0 for each in params):
        floors = floors.maximum(_top_p_floors(probabilities, [each.top_p for each in params]))
    return probabilities.masked_fill_(probabilities < floors, 0.0)


def _top_k_floors(logits: Tensor, limits: Sequence[int]) -> Tensor:
    """The row's `limit`-th largest; -inf where there is no limit. Shapes: [rows, vocab] and [rows] -> [rows, 1]."""
    vocab = logits.shape[-1]
    limited = [0 < limit < vocab for limit in limits]
    ordered = logits.topk(max(limit for limit in limits if limit < vocab), dim=-1).values
    last = [limit - 1 if each else 0 for limit, each in zip(limits, limited, strict=True)]
    floors = ordered.gather(-1, _column(last, ordered, torch.int64))
    return floors.minimum(_column([torch.inf if each else -torch.inf for each in limited], ordered))


def _top_p_floors(probabilities: Tensor, masses: Sequence[float]) -> Tensor:
    """The last of the most probable that together hold `masses`; 0 where that is 1. Shapes: [rows, vocab] -> [rows, 1].

    Orders all of the vocabulary: how much would do is known only after waiting for the device.
    """
    ordered = probabilities.sort(dim=-1, descending=True).values
    held = _column(masses, ordered, torch.float64)
    num_kept = (ordered.cumsum(-1, dtype=torch.float64) - ordered < held).sum(-1, keepdim=True)
    return ordered.gather(-1, num_kept.clamp_(min=1) - 1) * (held < 1.0)


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """To the device without waiting for it: pageable memory is staged before the call returns."""
    return torch.tensor(values, dtype=dtype or like.dtype).to(like.device, non_blocking=True)[:, None]
