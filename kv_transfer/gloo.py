"""Gloo between CPU hosts: torch.distributed over TCP, in clear, so for private networks only.

The owner takes part in every copy; `pair_transport` says how. Both the door and the pairs' sockets are bound to the
node's own address, so the interface is the one that this address belongs to, whatever GLOO_SOCKET_IFNAME says.
"""

from core.errors import ConfigError
from core.ids import LayoutId, NodeId
from kv_transfer.packing import Blocks
from kv_transfer.pair_server import PairServer
from kv_transfer.pair_transport import PairOptions, PairTransport
from kv_transfer.pairs import GlooPairs, is_available
from kv_transfer.transport import Binding


def why_not() -> str:
    """Why this process cannot move KV by gloo; empty where it can."""
    return "" if is_available("gloo") else "this build of torch has no gloo"


class GlooTransport(PairTransport):
    """The transport `gloo`. `host` is this node's own address."""

    def __init__(
        self, node: NodeId, layout: LayoutId, pool: Blocks, host: str, token: bytes, options: PairOptions | None = None
    ) -> None:
        if reason := why_not():
            raise ConfigError([f"transport: gloo cannot work here: {reason}"])
        server = PairServer(host, token)
        try:
            pairs = GlooPairs(host)
            own = Binding(node, layout, pool.shape, "gloo", server.address)
            super().__init__(own, pool, pairs, server, token, options or PairOptions())
        except BaseException:
            server.close()
            raise
