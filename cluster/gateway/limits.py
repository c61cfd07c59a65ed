"""What the gateway serves and what it takes, as two frozen values."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the door must know of the model. `max_model_len` counts prompt and answer together, in tokens."""

    name: str
    vocab_size: int
    max_model_len: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds at the door.

    `max_streams` counts every choice of a call. `max_pool_tokens` is what the largest node's KV pool holds; None leaves
    that refusal to the scheduler.
    `default_max_tokens` caps the answer of a request that names no length. A call whose client leaves more than
    `max_pending_bytes` unread, or reads nothing for `max_stall_s`, is cancelled as a slow reader.
    """

    max_message_bytes: int = 8 * MIB
    max_streams: int = 1024
    max_streams_per_connection: int = 100
    max_pool_tokens: int | None = None
    default_max_tokens: int = 256
    min_deadline_s: float = 0.1
    max_deadline_s: float = 600.0
    max_priority: int = 10
    max_pending_bytes: int = MIB
    max_stall_s: float = 30.0
