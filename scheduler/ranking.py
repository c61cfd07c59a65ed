"""Nodes in order, kept while they change, so that whoever routes looks at the best few only."""

from bisect import bisect_left, insort

from core.ids import NodeId
from scheduler.node_view import NodeView

Entry = tuple[float, NodeId, NodeView]
"""What it is ranked by, the node's id for ties, and the node."""


class Ranking:
    """Nodes by one number, least first. Owns: the order."""

    __slots__ = ("_rank", "entries")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._rank: dict[NodeId, float] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, node: NodeView, rank: float) -> None:
        """Place a node, wherever it was before."""
        before = self._rank.get(node.node)
        if before == rank:
            return
        if before is not None:
            self.drop(node.node)
        self._rank[node.node] = rank
        insort(self.entries, (rank, node.node, node))

    def drop(self, node: NodeId) -> None:
        """Take a node out, if it is here."""
        rank = self._rank.pop(node, None)
        if rank is not None:
            del self.entries[bisect_left(self.entries, (rank, node))]
