"""What the gateway serves and what it takes, as two frozen values."""

from dataclasses import dataclass, fields

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a model wants where a request says nothing; None: the interface's own default stands."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def said(self) -> list[tuple[str, float | int]]:
        """Those that the model names."""
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in values if value is not None]


NO_DEFAULTS = SamplingDefaults()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the door must know of the model. `max_model_len` counts prompt and answer together, in tokens.

    `defaults` are its own of sampling, for requests that say nothing.
    """

    name: str
    vocab_size: int
    max_model_len: int
    block_size: int
    defaults: SamplingDefaults = NO_DEFAULTS


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
