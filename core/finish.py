"""When an answer is complete, decided in one place by whichever machine samples the token."""

from core.events import FinishReason
from core.request import SamplingParams


def finish_reason(
    token_id: int, num_output: int, sampling: SamplingParams, eos_token_ids: frozenset[int]
) -> FinishReason | None:
    """Whether the answer ends with this token, its `num_output`-th."""
    if token_id in sampling.stop_token_ids or (token_id in eos_token_ids and not sampling.ignore_eos):
        return FinishReason.STOP
    if num_output >= sampling.max_tokens:
        return FinishReason.LENGTH
    return None
