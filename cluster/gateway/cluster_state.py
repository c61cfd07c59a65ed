"""What the gateway shows of the cluster: handed in by whoever runs it, as values."""

from collections.abc import Callable
from dataclasses import dataclass

from core.decisions import Decision
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
class DecisionCounts:
    """All decisions so far: by kind, and the changes of mix that were carried out, from role to role (equal: a budget).

    `is_infeasible`: by the last word no layout of these nodes can serve the load within its targets.
    """

    kinds: tuple[tuple[str, int], ...] = ()
    mix_changes: tuple[tuple[str, str, int], ...] = ()
    is_infeasible: bool = False


NO_DECISIONS = DecisionCounts()


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The nodes that are alive, and counters (name and value, rising) of the processes behind the gateway.

    `decisions` are the last ones with their numbers, oldest first, `decided` the counts of all;
    `wanted_nodes` is None where nobody said.
    """

    nodes: tuple[NodeState, ...]
    counters: tuple[tuple[str, int], ...] = ()
    decisions: tuple[tuple[int, Decision], ...] = ()
    wanted_nodes: int | None = None
    decided: DecisionCounts = NO_DECISIONS

    @property
    def can_serve(self) -> bool:
        """Whether some node can prefill and some node can decode."""
        mixes = [node.mix for node in self.nodes]
        return any(mix.accepts_prefill for mix in mixes) and any(mix.accepts_decode for mix in mixes)


StateProvider = Callable[[], ClusterState]
