"""What a step brought one attempt, and the message that carries its first token."""

from collections.abc import Collection
from dataclasses import dataclass

from core.events import FinishReason, PrefillDone, TokensEmitted
from core.ids import AttemptId
from core.request import num_packed
from core.stats import Timing
from core.step import PromptLogprobs, StepResult, TokenLogprobs
from prefill_worker.attempt import Prefill


@dataclass(slots=True)
class Fruit:
    """One attempt's part of a result. `token_id` is None where the prompt is not done, or where the row has failed."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    scored: PromptLogprobs | None = None
    has_failed: bool = False


def fruits_of(result: StepResult, attempts: Collection[AttemptId]) -> dict[AttemptId, Fruit]:
    """The parts of these attempts."""
    fruits = {attempt: Fruit() for attempt in attempts}
    for i, attempt in enumerate(result.attempts):
        if attempt in fruits:
            fruits[attempt].token_id = result.token_ids[i]
            fruits[attempt].logprobs = result.logprobs[i] if result.logprobs else None
    for scored in result.prompt_logprobs:
        if scored.attempt in fruits:
            fruits[scored.attempt].scored = scored
    for attempt in result.failed:
        if attempt in fruits:
            fruits[attempt].has_failed = True
    return fruits


def add_scores(prefill: Prefill, scored: PromptLogprobs | None) -> None:
    """Keep the scores of one chunk; chunks come in order."""
    if scored is not None:
        assert scored.first == len(prefill.scores) + 1, f"{prefill.id}: scores from {scored.first} on are not next"
        prefill.scores += scored.scores


def done_of(prefill: Prefill, token_id: int, now: float) -> PrefillDone:
    """The end of a prefill, with its part of the ledger."""
    timing = Timing(
        admit_s=prefill.asked.admit_s,
        queue_prefill_s=prefill.started_at - prefill.submitted_at,
        prefill_s=now - prefill.started_at,
        num_cached_tokens=prefill.num_cached,
    )
    return PrefillDone(prefill.num_tokens, token_id, timing)


def first_token(
    prefill: Prefill, done: PrefillDone, logprobs: TokenLogprobs | None, finish: FinishReason | None
) -> TokensEmitted:
    """The message with an attempt's first token, and with the scores of its prompt where they were asked."""
    wants_scores = prefill.asked.request.sampling.prompt_logprobs is not None
    return TokensEmitted(
        (prefill.id,),
        (num_packed(prefill.asked.log),),
        (done.token_id,),
        (finish,),
        (done.timing,),
        () if logprobs is None else (logprobs,),
        (tuple(prefill.scores),) if wants_scores else (),
    )
