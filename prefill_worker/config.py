"""What the prefill machine must know of its node and model."""

from dataclasses import dataclass, field

from core.ids import LayoutId, NodeId
from core.timers import Timers


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """`max_queued` bounds the attempts that wait or run here; one more is answered refused."""

    node: NodeId
    layout: LayoutId
    block_size: int
    eos_token_ids: frozenset[int]
    timers: Timers = field(default_factory=Timers)
    max_queued: int = 4096
