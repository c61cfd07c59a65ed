"""What a request adds to its logits before a token is chosen: biases, forbidden ends, and penalties on repetition.

Order: bias, `min_tokens`, repetition, frequency, presence. Source: vLLM v1, `sample/sampler.py`, `logits_processor` and
`model_executor/layers/utils.py`; the tests hold its formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.request import SamplingParams


@dataclass(frozen=True, slots=True)
class History:
    """All tokens that stand before the one to be chosen; the first `num_prompt_tokens` are the prompt.

    Shapes: `token_ids` int64 [tokens], on the device of the logits.
    """

    token_ids: Tensor
    num_prompt_tokens: int

    @property
    def num_answer_tokens(self) -> int:
        """How much of the answer exists."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def answer(self) -> Tensor:
        """The tokens of the answer."""
        return self.token_ids[self.num_prompt_tokens :]


def needs_history(params: SamplingParams) -> bool:
    """Whether a line with these parameters must bring its history."""
    return params.min_tokens > 0 or params.repetition_penalty != 1.0 or _counts_answers(params)


def adjusts(params: SamplingParams) -> bool:
    """Whether these parameters change logits at all."""
    return bool(params.logit_bias) or needs_history(params)


def adjust(
    logits: Tensor,
    params: Sequence[SamplingParams],
    histories: Sequence[History | None],
    eos_token_ids: Sequence[int],
) -> None:
    """Change logits in place as their rows' parameters ask; no synchronisation with a device.

    A logit that is not finite leaves its row's largest not finite, whatever is added.
    Shapes: [rows, vocab], contiguous, float32 or float64; [rows] each.
    """
    _shift(logits, params, histories, eos_token_ids)
    known = [(row, each, history) for row, (each, history) in enumerate(zip(params, histories, strict=True)) if history]
    repeated = [(row, each, history) for row, each, history in known if each.repetition_penalty != 1.0]
    if repeated:
        parts = [(row, history.token_ids) for row, _, history in repeated]
        _penalise_repeated(logits, parts, [each.repetition_penalty for _, each, _ in repeated])
    counted = [(row, each, history) for row, each, history in known if _counts_answers(each)]
    if counted:
        parts = [(row, history.answer) for row, _, history in counted]
        penalties = [(each.frequency_penalty, each.presence_penalty) for _, each, _ in counted]
        _penalise_counted(logits, parts, penalties)


def _counts_answers(params: SamplingParams) -> bool:
    return params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


def _shift(
    logits: Tensor,
    params: Sequence[SamplingParams],
    histories: Sequence[History | None],
    eos_token_ids: Sequence[int],
) -> None:
    """Add biases, and minus infinity to every token that would end an answer too early; where it has a format, its mask
    does that."""
    vocab = logits.shape[1]
    places: list[int] = []
    shifts: list[float] = []
    for row, (each, history) in enumerate(zip(params, histories, strict=True)):
        pairs = list(each.logit_bias)
        if history is not None and each.format is None and history.num_answer_tokens < each.min_tokens:
            pairs += [(token, -torch.inf) for token in {*eos_token_ids, *each.stop_token_ids}]
        inside = [pair for pair in pairs if pair[0] < vocab]
        places += [row * vocab + token for token, _ in inside]
        shifts += [shift for _, shift in inside]
    if places:
        logits.view(-1).index_add_(0, _sent(places, torch.int64, logits), _sent(shifts, logits.dtype, logits))


def _penalise_repeated(logits: Tensor, parts: Sequence[tuple[int, Tensor]], penalties: Sequence[float]) -> None:
    """Divide the positive and multiply the other logits of all tokens that occurred; once, however often they did."""
    flat, lengths, places = logits.view(-1), *_places(logits, parts)
    factors = _each(_sent(penalties, logits.dtype, logits), lengths, places)
    values = flat.index_select(0, places)
    flat.scatter_(0, places, torch.where(values > 0, values / factors, values * factors))


def _penalise_counted(
    logits: Tensor, parts: Sequence[tuple[int, Tensor]], penalties: Sequence[tuple[float, float]]
) -> None:
    """Subtract the frequency penalty once for each occurrence and the presence penalty once."""
    flat, lengths, places = logits.view(-1), *_places(logits, parts)
    counts = torch.zeros_like(flat).scatter_add_(0, places, torch.ones_like(places, dtype=logits.dtype))
    frequency, presence = (
        _each(_sent(column, logits.dtype, logits), lengths, places) for column in zip(*penalties, strict=True)
    )
    values = flat.index_select(0, places)
    flat.scatter_(0, places, values - frequency * counts.index_select(0, places) - presence)


def _places(logits: Tensor, parts: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """The parts' lengths, and where their tokens lie in flat logits."""
    lengths = _sent([len(token_ids) for _, token_ids in parts], torch.int64, logits)
    token_ids = torch.cat([token_ids for _, token_ids in parts])
    starts = _sent([row * logits.shape[1] for row, _ in parts], torch.int64, logits)
    return lengths, token_ids + _each(starts, lengths, token_ids)


def _each(values: Tensor, lengths: Tensor, like: Tensor) -> Tensor:
    """A part's value for each of its tokens; told the number of all, so that nothing waits to learn it."""
    return values.repeat_interleave(lengths, output_size=len(like))


def _sent(values: Sequence[float], dtype: torch.dtype, like: Tensor) -> Tensor:
    """To the device without waiting for it: pageable memory is staged before the call returns."""
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)
