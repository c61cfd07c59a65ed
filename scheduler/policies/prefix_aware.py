"""As `least_loaded`, but a prompt's tokens that a node holds already count for nothing there."""

from scheduler.policies.least_loaded import LeastLoaded
from scheduler.policies.policy import Demand
from scheduler.view import ClusterView, NodeView


class PrefixAware(LeastLoaded):
    """Sends a prompt where the fewest tokens have to be computed before its first one is sampled, per step budget."""

    def num_new(self, node: NodeView, demand: Demand, view: ClusterView) -> int:
        """Tokens of the prompt that the node is not believed to hold."""
        if demand.prompt in node.prompts:
            return 0
        hit = view.prefixes.depth(demand.prefixes, node.bit, len(demand.prefixes)) * demand.stride_tokens
        return demand.prefill_tokens - min(hit, demand.prefill_tokens - 1)
