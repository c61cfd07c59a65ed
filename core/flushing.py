"""What the operator says where no cached prefix is to be found again, and the answer."""

from dataclasses import dataclass

from core.ids import NodeId


@dataclass(frozen=True, slots=True)
class FlushAsked:
    """To both machines of a node: forget all KV that nobody uses. `flush` numbers the question."""

    flush: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """To the scheduler, and from there to the operator: the node has done it; so many blocks are free by that."""

    node: NodeId
    flush: int
    num_blocks: int
