"""What the decode machine must know of its node and model."""

from dataclasses import dataclass, field

from core.ids import NodeId
from core.timers import Timers


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """`max_early` bounds the attempts whose `Sealed` came before their `Offered`."""

    node: NodeId
    block_size: int
    eos_token_ids: frozenset[int]
    timers: Timers = field(default_factory=Timers)
    max_early: int = 1024
