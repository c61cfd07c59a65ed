"""One executor run: the plan that goes in and the result that comes out. Columns, not objects per token."""

from dataclasses import dataclass

from core.ids import AttemptId
from core.request import SamplingParams


@dataclass(frozen=True, slots=True)
class RowJoin:
    """A row that enters the executor before this step.

    `token_ids` (packed) are all tokens known so far; the KV of the first `num_computed` of them is in the blocks
    already.
    `block_ids` are the whole table now, `generations` aligned with it.
    """

    attempt: AttemptId
    token_ids: bytes
    num_computed: int
    sampling: SamplingParams
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowGrowth:
    """Blocks appended to a row's table before this step."""

    attempt: AttemptId
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the executor does next, in this order: `left` rows go, `joined` rows come, `grown` tables grow, rows run.

    `num_tokens[i]` is how many tokens row `attempts[i]` advances, from where it stands. A row whose known tokens are
    then
    all computed samples exactly one token at its end, which becomes known; a row that stops short samples nothing.
    Decode is a row with one token: phase does not appear. `seal` lists blocks that this step completes: the result
    brings their digests.
    """

    step: int
    attempts: tuple[AttemptId, ...]
    num_tokens: tuple[int, ...]
    joined: tuple[RowJoin, ...] = ()
    left: tuple[AttemptId, ...] = ()
    grown: tuple[RowGrowth, ...] = ()
    seal: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced: `attempts` that sampled and their `token_ids`, `sealed` blocks and their 16-byte
    `digests`."""

    step: int
    attempts: tuple[AttemptId, ...]
    token_ids: tuple[int, ...]
    sealed: tuple[int, ...]
    digests: tuple[bytes, ...]
    duration_s: float
