"""A node whose KV lies on a stand-in device, as a program: everything of a node on a GPU but the GPU.

The executor computes on the CPU over the stand-in's bytes. It can catch a slab, a binding, a transport or a device
index that is wired wrongly; nothing of what CUDA does. Stand-ins from `FIRST_WITH_NCCL` on have `nccl` too, with
gloo's pairs in the place of NCCL's.
"""

import os
import sys

from cluster.live import transports
from cluster.live.build import Progress, build_node
from cluster.live.config import NodeSettings
from cluster.live.gpus import device_index
from cluster.live.host import NodeParts
from cluster.live.node_memory import NodeMemory, on_device
from cluster.live.node_process import main
from cluster.live.orders import NodeOrder
from cluster.live.transports import Endpoint
from core.ids import NodeId
from core.kv import SlabShape
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.nccl import NcclTransport
from kv_transfer.pairs import GlooPairs
from kv_transfer.transport import Transport
from tests.transports.stand_in_device import StandInDevice

FIRST_WITH_NCCL = 2


def take_stand_in(settings: NodeSettings, shape: SlabShape, node: NodeId, progress: Progress) -> NodeMemory:
    """As `take_memory`, on the stand-in that the process was shown."""
    assert device_index(settings.device) == 0, "its only one is its first"
    lacking = "" if shown() >= FIRST_WITH_NCCL else "the stand-in has none"
    transports.WHY_NOT["nccl"] = lambda: lacking  # whatever this machine has
    transports.MAKE["nccl"] = nccl_over_gloo
    return on_device(StandInDevice(shown()), "cpu", shape)


def shown() -> int:
    """Which of the machine's cards, as a process on a GPU is told."""
    return int(os.environ.get("CUDA_VISIBLE_DEVICES", "0"))


def nccl_over_gloo(at: Endpoint) -> Transport:
    """`NcclTransport` over the stand-in's memory as a tensor."""
    assert isinstance(at.slab, DeviceSlab)
    return NcclTransport(at.node, at.layout, at.slab, at.host, at.token, kind=GlooPairs(at.host))


def build_on_stand_in(order: NodeOrder, progress: Progress) -> NodeParts:
    """As `build_node`."""
    return build_node(order, progress, take_stand_in)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), build_on_stand_in)
