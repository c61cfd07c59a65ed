"""How many tokens a row may guess in its next step: as many as are expected to pay for the lines that they cost."""

from collections.abc import Iterable
from dataclasses import dataclass

from decode_worker.config import PreemptionCosts

FIXED_LINES = 16.0
"""What a step costs before its first line, counted in lines, where no costs are given: it reads all weights once."""

MAX_ROWS = 32
"""With more rows than this nobody guesses: lines are no longer nearly free, and drafts take turns from rows."""

FIRST_ACCEPTANCE = 0.5
WEIGHT = 0.1
"""How much one draft moves the estimates: the last ten count for about two thirds."""

OVERLAP_SHARE = 0.25
"""A row that guesses is planned only when its last result is there: a quarter of a step, where steps overlap."""

PROBE_TOKENS = 2
FIRST_PAUSE, MAX_PAUSE = 8, 512
"""Where guessing does not pay, it is tried again after so many tokens: twice as many after each try that failed, and at
once after one that came true altogether."""


@dataclass(slots=True)
class Drafting:
    """How one row's guesses have fared.

    `acceptance`: estimated chance that a draft is confirmed when those before it were. `supply`: drafts that there were
    for each that was allowed. `num_since` tokens came since the last try; the next is due after `pause`. `is_guessing`:
    its last token came with drafts.
    """

    acceptance: float = FIRST_ACCEPTANCE
    supply: float = 1.0
    num_since: int = 0
    pause: int = 0
    is_guessing: bool = False

    def skip(self) -> None:
        """A token came without drafts."""
        self.num_since += 1
        self.is_guessing = False

    def learn(self, num_allowed: int, num_tried: int, num_confirmed: int) -> None:
        """What became of a step with drafts. All before the first that was refuted are confirmed, the rest is moot."""
        was_pausing, self.num_since, self.is_guessing = self.num_since > 0, 0, True
        self.supply += WEIGHT * (num_tried / num_allowed - self.supply)
        for _ in range(num_confirmed):
            self.acceptance += WEIGHT * (1.0 - self.acceptance)
        if num_confirmed < num_tried:
            self.acceptance -= WEIGHT * self.acceptance
        if 0 < num_tried == num_confirmed:
            self.pause = 0
        elif num_confirmed or not was_pausing:
            self.pause = FIRST_PAUSE
        else:
            self.pause = min(2 * self.pause, MAX_PAUSE)


class DraftPolicy:
    """Weighs what drafts bring against what they cost. Pure.

    The unit is a line: the cost of one more token in a step. A step has a fixed part besides, shared by its rows, so a
    token that comes out of a guess is worth `1 + fixed / rows` lines: what it would have cost in a step of its own.
    """

    def __init__(self, max_draft_tokens: int, costs: PreemptionCosts | None, overlaps: bool) -> None:
        self._max_draft_tokens = max_draft_tokens
        self._overlaps = overlaps
        self._fixed_lines = FIXED_LINES
        if costs is not None and costs.prefill_s_per_token > 0.0:
            self._fixed_lines = costs.fixed_s / costs.prefill_s_per_token

    def wish(self, drafting: Drafting, num_rows: int, num_others_without: int) -> int:
        """Drafts for the next step of a row among `num_rows`, of which `num_others_without` do not guess."""
        if not self._max_draft_tokens or num_rows > MAX_ROWS:
            return 0
        forgone = self._forgone(num_rows, num_others_without)
        gains = self._gains(drafting, num_rows, forgone)
        best = max(range(len(gains)), key=gains.__getitem__)
        if gains[best] > 0.0:
            return best + 1
        return min(PROBE_TOKENS, self._max_draft_tokens) if drafting.num_since >= drafting.pause else 0

    def _gains(self, drafting: Drafting, num_rows: int, forgone: float) -> list[float]:
        """Lines won by 1, 2, ... drafts."""
        worth = 1.0 + self._fixed_lines / num_rows
        gains, confirmed, likely = [], 0.0, 1.0
        for num_drafts in range(1, self._max_draft_tokens + 1):
            likely *= drafting.acceptance
            confirmed += likely
            gains.append(drafting.supply * (confirmed * worth - num_drafts) - forgone * worth)
        return gains

    def _forgone(self, num_rows: int, num_others_without: int) -> float:
        """Tokens lost by waiting for the last result: where steps overlap, a whole turn if the others go on."""
        if not self._overlaps:
            return 0.0
        return max(OVERLAP_SHARE, num_others_without / max(1, num_rows - 1))


def num_without(draftings: Iterable[Drafting]) -> int:
    """How many did not guess when they last ran."""
    return sum(not drafting.is_guessing for drafting in draftings)
