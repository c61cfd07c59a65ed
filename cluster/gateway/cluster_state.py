"""What the gateway shows of the cluster: handed in by whoever runs it, as values."""

from collections.abc import Callable
from dataclasses import dataclass

from core.ids import NodeId
from core.mix import Mix
from core.stats import NodeStats
from core.transfer import NO_TRANSFERS, TransferReport


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node as GetCluster shows it; `stats` is its own last report, None before the first."""

    id: NodeId
    pid: int
    actor_id: str
    mix: Mix
    stats: NodeStats | None
    kv_bytes_received: int
    num_fetches: int
    transfers: TransferReport = NO_TRANSFERS


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The nodes that are alive, and counters (name and value, rising) of the processes behind the gateway."""

    nodes: tuple[NodeState, ...]
    counters: tuple[tuple[str, int], ...] = ()

    @property
    def can_serve(self) -> bool:
        """Whether some node can prefill and some node can decode."""
        mixes = [node.mix for node in self.nodes]
        return any(mix.accepts_prefill for mix in mixes) and any(mix.accepts_decode for mix in mixes)


StateProvider = Callable[[], ClusterState]
