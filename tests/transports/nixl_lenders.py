"""Lenders and readers of the transport `nixl`: real agents over host memory."""

from core.ids import LayoutId, NodeId
from core.kv import SlabShape
from kv_transfer.faults import Faults, NoFaults
from kv_transfer.nixl import NixlOptions, NixlTransport
from kv_transfer.pools import HostPool
from kv_transfer.slab import Slab
from tests.transports.lenders import TOKEN, LocalLender


def nixl_lender(node: NodeId, layout: LayoutId, shape: SlabShape, token: bytes = TOKEN) -> LocalLender:
    slab = Slab.anonymous(shape, "lender")
    return LocalLender(NixlTransport(node, layout, HostPool(slab), token, NixlOptions(faults=NoFaults())), slab)


def nixl_reader(
    node: NodeId, layout: LayoutId, shape: SlabShape, faults: Faults | None, progress_s: float = 5
) -> tuple[NixlTransport, Slab]:
    slab = Slab.anonymous(shape, "reader")
    options = NixlOptions(progress_s=progress_s, faults=faults)
    return NixlTransport(node, layout, HostPool(slab), TOKEN, options), slab
