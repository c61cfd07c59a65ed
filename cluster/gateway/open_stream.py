"""What the gateway keeps of one open stream, and what it counts over all. Imports core only."""

from array import array
from dataclasses import dataclass, field

from core.events import FinishReason
from core.request import Request
from core.stats import Timing


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


@dataclass(frozen=True, slots=True)
class HeldToken:
    """A token that cannot go out yet."""

    token_id: int
    finish: FinishReason | None
    timing: Timing | None


@dataclass(slots=True)
class OpenStream:
    """One open stream. `current` is the newest attempt heard of; numbers up to `fenced` say nothing any more.

    `log` is None once it grew past its bound. `delivered_at` is None until the current attempt delivered; `gap_since`
    is when the first of the held tokens came, None without any.
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

    def meet(self, number: int) -> None:
        """A newer attempt speaks: what an older one left behind is void."""
        if number > self.current:
            self.current = number
            self.num_attempts += 1
            self.forget()

    def forget(self) -> None:
        """Nothing is held and nothing expected: the next attempt may take its time to begin."""
        self.held.clear()
        self.delivered_at, self.gap_since, self.told_silent = None, None, False
