"""What a client asked for, in our types. Limits are checked at the gateway's door, not here."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from core.ids import RequestId


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch that filter off."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SLO:
    """Service level objective: seconds to the first token, and mean seconds per token after it."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """What deciding needs of a prompt: its length and the content keys of its full blocks (see
    `core.kv.block_keys`)."""

    num_tokens: int
    block_keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted request.

    `token_ids` is payload: packed little-endian u32, `prompt.num_tokens` of them.
    `deadline_s` is the time left when the request was handed on, a duration because clocks differ between hosts.
    """

    id: RequestId
    prompt: Prompt
    token_ids: bytes
    sampling: SamplingParams
    slo: SLO | None = None
    priority: int = 0
    tenant: str = ""
    deadline_s: float = 600.0


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
