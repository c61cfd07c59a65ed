"""Makes a transport by name over a slab of host memory, as a node would; says why where this machine cannot."""

from collections.abc import Callable, Mapping

from core.errors import ConfigError
from core.ids import LayoutId, NodeId
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.transport import Transport

Make = Callable[[NodeId, LayoutId, Slab, bytes], Transport]
LOOPBACK = "127.0.0.1"


class NotHere(Exception):
    """This machine, or this version, has no such transport."""


def make_transport(name: str, node: NodeId, layout: LayoutId, slab: Slab, token: bytes) -> Transport:
    """The transport. Raises NotHere with the reason."""
    if name not in _MAKERS:
        raise NotHere("not in this version")
    try:
        return _MAKERS[name](node, layout, slab, token)
    except (ImportError, ConfigError) as error:
        raise NotHere(str(error)) from error


def _shm(node: NodeId, layout: LayoutId, slab: Slab, token: bytes) -> Transport:
    return ShmTransport(node, layout, slab, token)


def _gloo(node: NodeId, layout: LayoutId, slab: Slab, token: bytes) -> Transport:
    from kv_transfer.gloo import GlooTransport
    from kv_transfer.packing import HostBlocks

    return GlooTransport(node, layout, HostBlocks(slab), LOOPBACK, token)


def _nixl(node: NodeId, layout: LayoutId, slab: Slab, token: bytes) -> Transport:
    from kv_transfer.nixl import NixlTransport, can_run
    from kv_transfer.pools import HostPool

    if (why := can_run()) is not None:
        raise NotHere(why)
    return NixlTransport(node, layout, HostPool(slab), token)


_MAKERS: Mapping[str, Make] = {"shm": _shm, "gloo": _gloo, "nixl": _nixl}
