"""What a client asked for, in our types. Limits are checked at the gateway's door, not here."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from core.ids import RequestId


class FormatKind(StrEnum):
    """In what an answer's format is written: a JSON schema, a regular expression, or a Lark grammar."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What the whole text of an answer must be. That it compiles is the gateway's to check.

    Where an answer stands in its format follows from the format and the answer's tokens alone, so nothing but this
    travels with a request: whoever goes on with it replays the tokens.
    """

    kind: FormatKind
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch that filter off.

    Penalties have vLLM's meaning: `repetition_penalty` (1: off) counts prompt and answer, the other two (0: off) the
    answer only. `logit_bias` pairs token ids, each once, with what is added to their logits. Before `min_tokens` tokens
    no end token and no stop token can come. `logprobs` and `prompt_logprobs` are how many best alternatives are told
    beside each token; None: not told at all. `choice` numbers the samples of one prompt, each with its own randomness.
    With a `format` only tokens that can still lead to it are drawn, and an end token only where it is complete; where
    it is complete and nothing can follow, the end comes before `min_tokens`, too.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    choice: int = 0
    format: AnswerFormat | None = None


@dataclass(frozen=True, slots=True)
class SLO:
    """Service level objective: seconds to the first token, and mean seconds per token after it."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """What deciding needs of a prompt: its length and the content keys of its full blocks (see
    `core.kv.block_keys`). `tail_key` covers the whole prompt, so it names its last block, full or not."""

    num_tokens: int
    block_keys: tuple[bytes, ...] = ()
    tail_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted request.

    `token_ids` is payload: packed little-endian u32, `prompt.num_tokens` of them.
    `deadline_s` is the time left when the request was handed on, a duration because clocks differ between hosts.
    Higher `priority` goes first; below 0 is the offline class, which takes only what the others leave idle.
    """

    id: RequestId
    prompt: Prompt
    token_ids: bytes
    sampling: SamplingParams
    slo: SLO | None = None
    priority: int = 0
    tenant: str = ""
    deadline_s: float = 600.0

    @property
    def is_offline(self) -> bool:
        """Whether it may wait and be paused for as long as others need the nodes."""
        return self.priority < 0


def pack_tokens(token_ids: Iterable[int]) -> bytes:
    """Token ids as little-endian u32 bytes, the only form in which they travel."""
    return array("I", token_ids).tobytes()


def unpack_tokens(packed: bytes) -> tuple[int, ...]:
    """The inverse of `pack_tokens`. Raises ValueError when the length is not a multiple of 4."""
    ids = array("I")
    ids.frombytes(packed)
    return tuple(ids)


def num_packed(packed: bytes) -> int:
    """How many tokens `packed` holds."""
    return len(packed) // 4
