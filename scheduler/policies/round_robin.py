"""Each node in turn: what every smarter policy is measured against."""

from collections.abc import Iterable

from core.ids import NodeId
from scheduler.policies.least_loaded import BUSY, unavailable
from scheduler.policies.policy import Demand, Refusal, Route
from scheduler.view import ClusterView, NodeView


class RoundRobin:
    """Takes the next node with room for the prompt, and the next with room for the row.

    Owns: whose turn it was. A node that does both phases keeps what it prefills.
    """

    def __init__(self) -> None:
        self._last_prefill = NodeId("")
        self._last_decode = NodeId("")

    def route(self, demand: Demand, view: ClusterView, now: float) -> Route | Refusal:
        """Nodes to avoid are tried last."""
        for prefill in _in_turn(view.nodes.values(), self._last_prefill, demand):
            decode = self._decode_for(prefill, demand, view) if _can_prefill(prefill, demand) else None
            if decode is not None:
                self._last_prefill = prefill.node
                if decode is not prefill:
                    self._last_decode = decode.node
                return Route(prefill.node, decode.node)
        return unavailable(demand, view) or BUSY

    def _decode_for(self, prefill: NodeView, demand: Demand, view: ClusterView) -> NodeView | None:
        if not demand.decodes:
            return prefill
        if prefill.mix.accepts_decode:
            blocks = max(demand.prefill_blocks, demand.decode_blocks)
            return prefill if prefill.num_unbooked >= blocks and prefill.num_rows_left > 0 else None
        for node in _in_turn(view.nodes.values(), self._last_decode, demand):
            fits = node.num_unbooked >= demand.decode_blocks and node.num_rows_left > 0
            if node.mix.accepts_decode and fits and node.spec.layout == prefill.spec.layout:
                return node
        return None


def _can_prefill(node: NodeView, demand: Demand) -> bool:
    return node.mix.accepts_prefill and node.num_unbooked >= demand.prefill_blocks


def _in_turn(nodes: Iterable[NodeView], last: NodeId, demand: Demand) -> list[NodeView]:
    """All, by name, from behind the last one on; those to avoid at the end."""
    return sorted(nodes, key=lambda node: (node.node in demand.avoid, node.node <= last, node.node))
