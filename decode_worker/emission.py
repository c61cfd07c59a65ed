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
        self, attempt: AttemptId, index: int, taken: Taken, finish: FinishReason | None, timing: Timing | None
    ) -> None:
        """One more token; those of one attempt come in order."""
        self.attempts.append(attempt)
        self.indices.append(index)
        self.token_ids.append(taken[0])
        self.logprobs.append(taken[1])
        self.finishes.append(finish)
        self.timings.append(timing)

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
