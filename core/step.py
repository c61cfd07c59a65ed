"""One executor run: the plan that goes in and the result that comes out. Columns, not objects per token."""

from dataclasses import dataclass

from core.ids import AttemptId
from core.request import SamplingParams


@dataclass(frozen=True, slots=True)
class RowJoin:
    """A row that enters the executor before this step.

    `token_ids` (packed) are all tokens known so far; the KV of the first `num_computed` of them is in the blocks
    already.
    `block_ids` are the whole table now, `generations` aligned with it. Tokens from `num_prompt_tokens` on are answer.
    `copied_from` is a block of another table whose first `num_computed % block_size` tokens are copied into the
    row's own block of that place before the step (copy on write).
    """

    attempt: AttemptId
    token_ids: bytes
    num_computed: int
    sampling: SamplingParams
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]
    num_prompt_tokens: int
    copied_from: int | None = None


@dataclass(frozen=True, slots=True)
class RowGrowth:
    """Blocks appended to a row's table before this step; for a row that is restored, its whole new table."""

    attempt: AttemptId
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the executor does next, in this order: `left` rows go, `saved` rows are copied out, `joined` rows come,
    `restored` rows come back, `grown` tables grow, rows run.

    `num_tokens[i]` is how many tokens row `attempts[i]` advances, from where it stands. A row whose known tokens are
    then all computed samples exactly one token at its end, which becomes known; a row that stops short samples nothing.
    Decode is a row with one token: phase does not appear. `seal` lists blocks that this step completes: the result
    brings their digests.

    `max_drafts`, empty or aligned with `attempts`: a sampling row may guess that many further tokens, compute them in
    the same step and keep those that the model confirms; its blocks reach for all of them.
    A `saved` row's KV is kept in host memory and its blocks are not touched after this step; it comes back by
    `restored` with blocks of the same number, or goes by `left`.
    """

    step: int
    attempts: tuple[AttemptId, ...]
    num_tokens: tuple[int, ...]
    joined: tuple[RowJoin, ...] = ()
    left: tuple[AttemptId, ...] = ()
    grown: tuple[RowGrowth, ...] = ()
    seal: tuple[int, ...] = ()
    max_drafts: tuple[int, ...] = ()
    saved: tuple[AttemptId, ...] = ()
    restored: tuple[RowGrowth, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token's natural log probability, its rank (1 is best), and the best tokens with theirs, best first.

    They are of the model's own distribution: before penalties, bias, formats, temperature and filters.
    """

    logprob: float
    rank: int
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Scores of a row's prompt tokens from `first` on (0 has none), as far as one step computed them."""

    attempt: AttemptId
    first: int
    scores: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced: `attempts` that sampled and their `token_ids`, `sealed` blocks and their 16-byte
    `digests`.

    A row whose drafts were confirmed stands in `attempts` once for each token, in order. `logprobs` is empty, or
    aligned with `attempts` and None where not asked. `num_drafts` is empty, or aligned with the plan's `attempts`:
    guesses that were tried. Rows in `failed` (logits that are not finite) sampled nothing and are forgotten; the others
    are sound. A plan that was run `num_runs` times has won every row so many tokens; `duration_s` is of all runs.
    """

    step: int
    attempts: tuple[AttemptId, ...]
    token_ids: tuple[int, ...]
    sealed: tuple[int, ...]
    digests: tuple[bytes, ...]
    duration_s: float
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    num_drafts: tuple[int, ...] = ()
    failed: tuple[AttemptId, ...] = ()
    num_runs: int = 1
