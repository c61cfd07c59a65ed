"""What the fake executor should say: a token is a checksum of all tokens before it. No blocks, no steps."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from core.events import FinishReason
from core.finish import finish_reason
from core.request import Request, SamplingParams, unpack_tokens
from core.step import TokenLogprobs

VOCAB_SIZE = 61
"""Small, so that end tokens come up; prime, so that no arithmetic slip hides in a remainder."""

BEFORE_FIRST = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def slot_value(before: int, token_id: int, position: int) -> int:
    """KV of one token: a 64-bit mix of its predecessor's KV, the token, and its place. A bijection of `before`."""
    mixed = (before ^ (token_id + 1) * 0xBF58476D1CE4E5B9 ^ (position + 1) * 0x94D049BB133111EB) & _MASK
    mixed = (mixed ^ mixed >> 29) * 0xD6E8FEB86659FD93 & _MASK
    return mixed ^ mixed >> 32


def sampled_token(slots: bytes, sampling: SamplingParams, position: int, vocab_size: int) -> int:
    """The token at `position`, after all `slots` before it: their checksum under the key (seed, choice, position)."""
    key = ((sampling.seed & _MASK) << 128 | sampling.choice << 64 | position).to_bytes(24, "little")
    return int.from_bytes(blake2b(slots, digest_size=8, key=key).digest(), "little") % vocab_size


def scores_of(token_id: int, num_top: int) -> TokenLogprobs:
    """What is told of a token's probability: nothing that depends on where it stands."""
    return TokenLogprobs(
        -0.5 * token_id, 1 + token_id, tuple(range(num_top)), tuple(-0.5 * other for other in range(num_top))
    )


def reference_tokens(
    request: Request, eos_token_ids: frozenset[int] = frozenset(), vocab_size: int = VOCAB_SIZE
) -> tuple[tuple[int, ...], FinishReason]:
    """The oracle: what one node that does nothing else would answer, and why it stops. No blocks, no steps."""
    slots, value = array("Q"), BEFORE_FIRST
    output: list[int] = []
    pending: Sequence[int] = unpack_tokens(request.token_ids)
    while True:
        for token_id in pending:
            value = slot_value(value, token_id, len(slots))
            slots.append(value)
        output.append(sampled_token(slots.tobytes(), request.sampling, len(slots), vocab_size))
        finish = finish_reason(output[-1], len(output), request.sampling, eos_token_ids)
        if finish is not None:
            return tuple(output), finish
        pending = output[-1:]
