"""The tokens of one step on their way to one gateway."""

from dataclasses import dataclass, field

from core.events import FinishReason, TokensEmitted
from core.ids import AttemptId
from core.stats import Timing
from core.step import StepResult, TokenLogprobs

Taken = tuple[int, TokenLogprobs | None]
"""A token, and its scores where they were asked for."""


def tokens_of(result: StepResult) -> dict[AttemptId, list[Taken]]:
    """What each row has won in a step, in order."""
    logprobs = result.logprobs or (None,) * len(result.attempts)
    found: dict[AttemptId, list[Taken]] = {}
    for attempt, token_id, scores in zip(result.attempts, result.token_ids, logprobs, strict=True):
        found.setdefault(attempt, []).append((token_id, scores))
    return found


@dataclass(slots=True)
class Emission:
    """A message in the making, in columns."""

    attempts: list[AttemptId] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finishes: list[FinishReason | None] = field(default_factory=list)
    timings: list[Timing | None] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    def add(
        self, attempt: AttemptId, index: int, taken: list[Taken], finish: FinishReason | None, timing: Timing | None
    ) -> None:
        """More tokens of one attempt, in order from place `index` on; `finish` and `timing` are the last one's."""
        before = [None] * (len(taken) - 1)
        self.attempts += [attempt] * len(taken)
        self.indices += range(index, index + len(taken))
        self.token_ids += [token_id for token_id, _ in taken]
        self.logprobs += [scores for _, scores in taken]
        self.finishes += [*before, finish]
        self.timings += [*before, timing]

    def event(self) -> TokensEmitted:
        """The message."""
        return TokensEmitted(
            tuple(self.attempts),
            tuple(self.indices),
            tuple(self.token_ids),
            tuple(self.finishes),
            tuple(self.timings),
            tuple(self.logprobs) if any(scores is not None for scores in self.logprobs) else (),
        )
