"""What makes a node's parts from its order, without importing torch before it is needed."""

from collections.abc import Callable

from cluster.live.host import NodeParts
from cluster.live.launcher import Progress
from cluster.live.orders import NodeOrder

Build = Callable[[NodeOrder, Progress], NodeParts]


def build_with_model(order: NodeOrder, progress: Progress) -> NodeParts:
    """A node with a real model; imports torch, which takes seconds. Raises ConfigError."""
    progress("importing", 0.0)
    from cluster.live.build import build_node

    return build_node(order, progress)
