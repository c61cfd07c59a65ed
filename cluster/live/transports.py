"""Makes a node's transports: what was asked for, or all that its memory and this machine allow.

KV of the host: `shm` and `gloo`. KV of a GPU: `cuda_ipc` on its host, `nccl` to other GPUs, and where neither joins a
pair, `gloo` through host memory.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from cluster.live.config import check_transport
from core.errors import ConfigError
from core.ids import LayoutId, NodeId
from kv_transfer import gloo, nccl, nixl
from kv_transfer.choose import AUTO, MEASURED, Place
from kv_transfer.cuda_ipc import CudaIpcTransport
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.gloo import GlooTransport
from kv_transfer.links import Links
from kv_transfer.nccl import NcclTransport
from kv_transfer.nixl import NixlOptions, NixlTransport
from kv_transfer.packing import HostBlocks
from kv_transfer.pools import DevicePool, HostPool
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.staging import StagedBlocks
from kv_transfer.transport import Transport

LOG = logging.getLogger("penstock.kv")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What every transport of a node needs to know.

    `host`: the node's own address, as its peers reach it; `gpu`: the card that the slab lies on, empty for the host's.
    """

    node: NodeId
    layout: LayoutId
    slab: Slab | DeviceSlab
    host: str
    token: bytes
    gpu: str = ""


def _shm(at: Endpoint) -> Transport:
    assert isinstance(at.slab, Slab), "refused by `check_transport`"
    return ShmTransport(at.node, at.layout, at.slab, at.token)


def _gloo(at: Endpoint) -> Transport:
    pool = StagedBlocks(at.slab) if isinstance(at.slab, DeviceSlab) else HostBlocks(at.slab)
    return GlooTransport(at.node, at.layout, pool, at.host, at.token)


def _nixl(at: Endpoint) -> Transport:
    if reason := nixl.can_run():
        raise ConfigError([f"transport: nixl cannot work here: {reason}"])
    pool = DevicePool(at.slab) if isinstance(at.slab, DeviceSlab) else HostPool(at.slab)
    return NixlTransport(at.node, at.layout, pool, at.token, NixlOptions(host=at.host))


def _cuda_ipc(at: Endpoint) -> Transport:
    assert isinstance(at.slab, DeviceSlab), "refused by `check_transport`"
    return CudaIpcTransport(at.node, at.layout, at.slab, at.token)


def _nccl(at: Endpoint) -> Transport:
    assert isinstance(at.slab, DeviceSlab), "refused by `check_transport`"
    return NcclTransport(at.node, at.layout, at.slab, at.host, at.token)


MAKE: dict[str, Callable[[Endpoint], Transport]] = {
    "shm": _shm,
    "gloo": _gloo,
    "nixl": _nixl,
    "cuda_ipc": _cuda_ipc,
    "nccl": _nccl,
}
OF_HOST_MEMORY = ("shm", "gloo")
OF_DEVICE_MEMORY = ("cuda_ipc", "nccl", "gloo")
"""What a node has without being asked. NIXL is an extra with threads and ports of its own: only by name."""

WHY_NOT: dict[str, Callable[[], str]] = {"gloo": gloo.why_not, "nccl": nccl.why_not}
JOINS = {"gloo": "nodes that nothing else joins", "nccl": "GPUs that cannot map each other's memory"}


def _by_themselves(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that work in this process; the others are named in the log."""
    reasons = {name: WHY_NOT[name]() for name in names if name in WHY_NOT}
    for name, reason in reasons.items():
        if reason:
            LOG.warning("transport: %s is left out: %s; it would join %s", name, reason, JOINS[name])
    return tuple(name for name in names if not reasons.get(name))


def open_links(asked: str, at: Endpoint) -> Links:
    """The node's transports, serving. Raises ConfigError where the one asked for cannot be had here."""
    is_on_device = isinstance(at.slab, DeviceSlab)
    check_transport(asked, "cuda" if is_on_device else "cpu")
    own = OF_DEVICE_MEMORY if is_on_device else OF_HOST_MEMORY
    names = _by_themselves(own) if asked in (AUTO, MEASURED) else (asked,)
    made: list[Transport] = []
    try:
        for name in names:
            made.append(MAKE[name](at))
    except BaseException:
        for transport in made:
            transport.close()
        raise
    return Links(made, asked, Place.here(at.gpu))
