"""What the gateway keeps of one open stream, and what it counts over all. Imports core only."""

from array import array
from dataclasses import dataclass, field

from core.events import FinishReason
from core.request import Request, SamplingParams
from core.stats import Timing
from core.step import TokenLogprobs

Scores = tuple[TokenLogprobs, ...]


@dataclass(slots=True)
class StreamCounts:
    """What was dropped, by reason; counters only rise. `lost_logs`: streams too long to survive the loss of a node."""

    unknown: int = 0
    fenced: int = 0
    repeated: int = 0
    overflowed: int = 0
    lost_logs: int = 0

    @property
    def dropped(self) -> int:
        """Tokens and events that changed nothing."""
        return self.unknown + self.fenced + self.repeated + self.overflowed


@dataclass(slots=True)
class HeldToken:
    """A token on its way out. Not frozen: one is made for every token, and that costs three times as much."""

    token_id: int
    finish: FinishReason | None
    timing: Timing | None
    logprobs: TokenLogprobs | None
    prompt_logprobs: Scores | None

    def answers(self, sampling: SamplingParams, index: int) -> bool:
        """Whether it brings the scores that were asked for; those of the prompt come beside the first token."""
        return (sampling.logprobs is None or self.logprobs is not None) and (
            sampling.prompt_logprobs is None or index > 0 or self.prompt_logprobs is not None
        )


@dataclass(slots=True)
class OpenStream:
    """One open stream. `current` is the newest attempt heard of; numbers up to `fenced` say nothing any more.

    `log` is None once it grew past its bound. `delivered_at` is None until the current attempt delivered; `gap_since`
    is when the first of the held tokens came, None without any; `timing` is the last that the current attempt told;
    `is_scored`: logprobs were asked for.
    """

    request: Request
    opened_at: float
    next: int = 0
    current: int = -1
    fenced: int = -1
    num_attempts: int = 0
    log: "array[int] | None" = field(default_factory=lambda: array("I"))
    held: dict[int, HeldToken] = field(default_factory=dict)
    delivered_at: float | None = None
    gap_since: float | None = None
    told_silent: bool = False
    timing: Timing | None = None
    is_scored: bool = field(init=False)

    def __post_init__(self) -> None:
        asked = self.request.sampling
        self.is_scored = asked.logprobs is not None or asked.prompt_logprobs is not None

    def is_plainly_next(self, number: int, index: int) -> bool:
        """Whether a token of attempt `number` can go out as it is: the next one, with nothing held and no scores."""
        return index == self.next and number == self.current > self.fenced and not self.held and not self.is_scored

    def scores(self, index: int, tokens: list[HeldToken]) -> tuple[Scores, Scores]:
        """What was asked for of the tokens from place `index` on, and of the prompt beside place 0."""
        if not self.is_scored:
            return (), ()
        asked = self.request.sampling
        scores = [token.logprobs for token in tokens if token.logprobs is not None and asked.logprobs is not None]
        of_prompt = tokens[0].prompt_logprobs if asked.prompt_logprobs is not None and index == 0 else None
        return tuple(scores), of_prompt or ()

    def meet(self, number: int) -> None:
        """A newer attempt speaks: what an older one left behind is void."""
        if number > self.current:
            self.current = number
            self.num_attempts += 1
            self.forget()

    def forget(self) -> None:
        """Nothing is held and nothing expected: the next attempt may take its time to begin."""
        self.held.clear()
        self.delivered_at, self.gap_since, self.told_silent, self.timing = None, None, False, None
