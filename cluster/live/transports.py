"""Makes a node's transports: what was asked for, or all that its memory and this machine allow."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from cluster.live.config import check_transport
from core.errors import ConfigError
from core.ids import LayoutId, NodeId
from kv_transfer import gloo, nixl
from kv_transfer.choose import AUTO, MEASURED
from kv_transfer.gloo import GlooTransport
from kv_transfer.links import Links
from kv_transfer.nixl import NixlOptions, NixlTransport
from kv_transfer.packing import HostBlocks
from kv_transfer.pools import HostPool
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.transport import Transport

LOG = logging.getLogger("penstock.kv")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What every transport of a node needs to know. `host`: the node's own address, as its peers reach it."""

    node: NodeId
    layout: LayoutId
    slab: Slab
    host: str
    token: bytes


def _shm(at: Endpoint) -> Transport:
    return ShmTransport(at.node, at.layout, at.slab, at.token)


def _gloo(at: Endpoint) -> Transport:
    return GlooTransport(at.node, at.layout, HostBlocks(at.slab), at.host, at.token)


def _nixl(at: Endpoint) -> Transport:
    if reason := nixl.can_run():
        raise ConfigError([f"transport: nixl cannot work here: {reason}"])
    return NixlTransport(at.node, at.layout, HostPool(at.slab), at.token, NixlOptions(host=at.host))


OF_HOST_MEMORY: dict[str, Callable[[Endpoint], Transport]] = {"shm": _shm, "gloo": _gloo, "nixl": _nixl}
BY_THEMSELVES = ("shm", "gloo")
"""What a node has without being asked. NIXL is an extra with threads and ports of its own: only by name."""


def _by_themselves() -> tuple[str, ...]:
    if not (reason := gloo.why_not()):
        return BY_THEMSELVES
    LOG.warning("transport: gloo is left out: %s; nodes of other hosts cannot be joined", reason)
    return tuple(name for name in BY_THEMSELVES if name != "gloo")


def open_links(asked: str, at: Endpoint) -> Links:
    """The node's transports, serving. Raises ConfigError where the one asked for cannot be had here."""
    check_transport(asked)
    names = _by_themselves() if asked in (AUTO, MEASURED) else (asked,)
    made: list[Transport] = []
    try:
        for name in names:
            made.append(OF_HOST_MEMORY[name](at))
    except BaseException:
        for transport in made:
            transport.close()
        raise
    return Links(made, asked)
