"""The fewest prompt tokens before the first answer token per step budget, then the smallest share of blocks booked."""

from collections.abc import Iterable

from scheduler.policies.policy import Demand, Refusal, Route
from scheduler.view import ClusterView, NodeView

BUSY = Refusal("busy", "all blocks or rows of the nodes that could take it are booked")


class LeastLoaded:
    """Sends a prompt where it is done soonest; decodes it there if that node decodes, else on the emptiest decode node.

    The choices of one prompt, and whoever else asks the same, need not compute it where it is being computed: they
    follow each other there, until the queue before them is longer than elsewhere the queue and the prompt together.
    """

    def route(self, demand: Demand, view: ClusterView, now: float) -> Route | Refusal:
        """Nodes to avoid are tried last."""
        prefills = [node for node in view.nodes.values() if node.mix.accepts_prefill]
        decodes = [node for node in view.nodes.values() if node.mix.accepts_decode]
        if refusal := unavailable(demand, view):
            return refusal
        for prefill in sorted(prefills, key=lambda node: self._wait(node, demand, view)):
            route = self._with(prefill, decodes, demand)
            if route is not None:
                return route
        return BUSY

    def num_new(self, node: NodeView, demand: Demand, view: ClusterView) -> int:
        """Tokens of the prompt that are to be computed there."""
        return demand.prefill_tokens if demand.prompt not in node.prompts else 0

    def _wait(self, node: NodeView, demand: Demand, view: ClusterView) -> tuple[bool, float, bool, float, str]:
        num_new = self.num_new(node, demand, view)
        steps = (node.queued_tokens + num_new) / max(node.mix.prefill_tokens_per_step, 1)
        return node.node in demand.avoid, steps, num_new > 0, node.share_booked, node.node

    def _with(self, prefill: NodeView, decodes: Iterable[NodeView], demand: Demand) -> Route | None:
        if not demand.decodes:
            return Route(prefill.node, prefill.node) if prefill.num_unbooked >= demand.prefill_blocks else None
        if prefill.mix.accepts_decode:
            blocks = max(demand.prefill_blocks, demand.decode_blocks)
            fits = prefill.num_unbooked >= blocks and prefill.num_rows_left > 0
            return Route(prefill.node, prefill.node) if fits else None
        if prefill.num_unbooked < demand.prefill_blocks:
            return None
        room = [
            node
            for node in decodes
            if node.spec.layout == prefill.spec.layout
            and node.num_unbooked >= demand.decode_blocks
            and node.num_rows_left > 0
        ]
        if not room:
            return None
        return Route(prefill.node, min(room, key=lambda node: _fullness(node, demand)).node)


def unavailable(demand: Demand, view: ClusterView) -> Refusal | None:
    """The refusal where a phase that the request needs is accepted by nobody."""
    nodes = view.nodes.values()
    if not any(node.mix.accepts_prefill for node in nodes):
        return Refusal("unavailable", "no node accepts prefill now")
    if demand.decodes and not any(node.mix.accepts_decode for node in nodes):
        return Refusal("unavailable", "no node accepts decode now")
    return None


def _fullness(node: NodeView, demand: Demand) -> tuple[bool, float, str]:
    return node.node in demand.avoid, node.share_booked, node.node
