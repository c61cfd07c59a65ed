"""One attempt at the prefill machine, and what of its tokens may be found instead of computed."""

from dataclasses import dataclass, field

from core.events import AttemptEnd, Submitted
from core.ids import AttemptId
from core.lifecycle import PrefillState
from core.request import Prompt, num_packed
from core.step import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Findable:
    """What of an attempt may be here: full blocks by their `keys`, to be shared; behind them `num_copied` tokens, to be
    copied from the block that `tail` names. Without a key for them, `tail` is empty and `num_copied` 0.
    """

    keys: tuple[bytes, ...] = ()
    tail: bytes = b""
    num_copied: int = 0

    @property
    def names(self) -> tuple[bytes, ...]:
        """The keys of all blocks, of the one to be copied from as well."""
        return (*self.keys, self.tail) if self.tail else self.keys

    def num_tokens(self, num_blocks: int, block_size: int) -> int:
        """Tokens in the first `num_blocks` of these blocks that need not be computed."""
        num_full = min(num_blocks, len(self.keys))
        return num_full * block_size + (self.num_copied if num_blocks > num_full else 0)


@dataclass(slots=True)
class Prefill:
    """One attempt. `num_*` count tokens or blocks of its own table, from the start.

    computed: results are in. planned: computed, or in a step in flight. sealed, offered, to_seal: blocks. cached:
    tokens that were found. `source` is the block that its first step copies from, held until that step is over.
    `num_lacking`: so many available blocks were too few. `awaited`: see `prefixes`. `scores` are those of its prompt
    tokens from the second on, as far as computed. `is_migrant`: it is a row that decoded here. `end` is what will be
    reported once nothing holds its blocks; None while it is wanted.
    """

    asked: Submitted
    submitted_at: float
    num_tokens: int
    findable: Findable
    state: PrefillState = PrefillState.QUEUED
    table: tuple[int, ...] = ()
    source: tuple[int, ...] = ()
    num_cached: int = 0
    num_computed: int = 0
    num_planned: int = 0
    num_to_seal: int = 0
    num_sealed: int = 0
    num_offered: int = 0
    last_step: int = -1
    started_at: float = 0.0
    num_lacking: int = -1
    awaited: "Awaited | None" = None
    scores: list[TokenLogprobs] = field(default_factory=list)
    is_migrant: bool = False
    end: AttemptEnd | None = None

    @property
    def id(self) -> AttemptId:
        """Its name."""
        return self.asked.attempt

    @property
    def is_done(self) -> bool:
        """Whether the whole prompt has been computed."""
        return self.num_computed == self.num_tokens


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a queued attempt waits for: the first `num_blocks` blocks of `by`, which are the same as its own."""

    by: Prefill
    num_blocks: int


def prefill_of(asked: Submitted, block_size: int, now: float) -> Prefill:
    """A new attempt."""
    num_tokens = asked.request.prompt.num_tokens + num_packed(asked.log)
    return Prefill(asked, now, num_tokens, findable_of(asked, num_tokens, block_size))


def findable_of(asked: Submitted, num_tokens: int, block_size: int) -> Findable:
    """The prompt without the log of earlier attempts, and without the last of all tokens: its logits are wanted.

    Who wants the scores of the prompt's tokens needs the logits of all.
    """
    prompt = asked.request.prompt
    if asked.request.sampling.prompt_logprobs is not None:
        return Findable()
    num_findable = min(prompt.num_tokens, num_tokens - 1)
    keys, num_copied = prompt.block_keys[: num_findable // block_size], num_findable % block_size
    if not prompt.tail_key or not num_copied or len(keys) < num_findable // block_size:
        return Findable(keys)
    return Findable(keys, prompt.tail_key, num_copied)


def key_of_block(prompt: Prompt, index: int, block_size: int) -> bytes | None:
    """What names the prompt's tokens in the block at `index` of its table; None where there are none, or no key."""
    if index < len(prompt.block_keys):
        return prompt.block_keys[index]
    is_tail = index == prompt.num_tokens // block_size and prompt.num_tokens % block_size
    return prompt.tail_key if is_tail and prompt.tail_key else None
