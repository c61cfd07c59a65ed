"""What a node tells of its pool, and what every way of moving KV does.

A transport copies blocks that another node lent into blocks that its own node reserved. It never decides: which blocks,
under which lease and for how long is the machines' business.
"""

from dataclasses import astuple, dataclass
from typing import Protocol

import msgpack

from core.errors import LayoutMismatch
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import DTYPE_BYTES, FetchTarget, KVHandle, KVLayout, SlabShape, weights_of
from kv_transfer.copy_plan import check_maps

MAX_BINDING_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Binding:
    """One node's pool as its peers need it. `address` is a name of the transport's own kind, never a memory address."""

    node: NodeId
    layout: LayoutId
    shape: SlabShape
    transport: str
    address: str

    def pack(self) -> bytes:
        """This binding as it travels: equal bindings give equal bytes."""
        packed: bytes = msgpack.packb(
            (self.node, self.layout, self.transport, self.address, self.shape.num_blocks, astuple(self.shape.layout))
        )
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> "Binding":
        """The inverse of `pack`. Raises LayoutMismatch for bytes that are no binding."""
        try:
            if len(data) > MAX_BINDING_BYTES:
                raise ValueError(f"{len(data)} bytes; the limit is {MAX_BINDING_BYTES}")
            node, layout, transport, address, num_blocks, geometry = msgpack.unpackb(data, use_list=False)
            if not all(type(text) is str for text in (node, layout, transport, address)):
                raise ValueError("a name is not text")
            return cls(
                NodeId(node), LayoutId(layout), SlabShape(_layout(geometry), _count(num_blocks)), transport, address
            )
        except (ValueError, TypeError) as error:
            raise LayoutMismatch(f"not a binding: {error}") from error


def check_fits(peer: Binding, own: Binding) -> None:
    """Raises LayoutMismatch unless KV of `peer` means the same, byte for byte, in our pool, and travels in our way."""
    if peer.transport != own.transport:
        raise LayoutMismatch(f"{peer.node} is bound by {peer.transport}, this node by {own.transport}")
    if peer.layout != own.layout or peer.shape.layout != own.shape.layout:
        raise LayoutMismatch(
            f"{peer.node} has KV layout {peer.layout}, this node has {own.layout}: {peer.shape.layout}"
        )
    if own.shape.layout.tp_size != 1:
        raise LayoutMismatch(f"tensor-parallel KV (tp_size {own.shape.layout.tp_size}) is not moved by {own.transport}")


def check_maps_onto(peer: Binding, own: Binding) -> None:
    """Raises LayoutMismatch unless KV of `peer` can be brought into our pool, be it laid out anew or converted.

    For transports that read into private memory first where the two layouts differ; others need `check_fits`.
    """
    if peer.transport != own.transport:
        raise LayoutMismatch(f"{peer.node} is bound by {peer.transport}, this node by {own.transport}")
    if weights_of(peer.layout) != weights_of(own.layout):
        raise LayoutMismatch(f"{peer.node} has KV layout {peer.layout}, this node has {own.layout}: other weights")
    if (peer.layout == own.layout) != (peer.shape.layout == own.shape.layout):
        raise LayoutMismatch(f"{peer.node}: one layout {peer.layout} for {peer.shape.layout} and {own.shape.layout}")
    check_maps(peer.shape.layout, own.shape.layout)


def check_lent(handle: KVHandle, peer: Binding) -> None:
    """Raises LayoutMismatch for a handle of another layout than its owner's pool has."""
    if handle.layout != peer.layout:
        raise LayoutMismatch(f"{handle.attempt}: lent as KV layout {handle.layout}, {peer.node} has {peer.layout}")


def check_layout(handle: KVHandle, own: Binding) -> None:
    """Raises LayoutMismatch for a handle of another layout than our pool's."""
    if handle.layout != own.layout:
        raise LayoutMismatch(f"{handle.attempt}: lent as KV layout {handle.layout}, this node has {own.layout}")


def _layout(geometry: tuple[object, ...]) -> KVLayout:
    layers, heads, head_dim, block_size, dtype, tp_rank, tp_size = geometry
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPE_BYTES)}")
    size = _count(tp_size)
    if type(tp_rank) is not int or not 0 <= tp_rank < size:
        raise ValueError(f"tp_rank must be from 0 to {size - 1}")
    return KVLayout(_count(layers), _count(heads), _count(head_dim), _count(block_size), dtype, tp_rank, size)


def _count(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 32:
        raise ValueError(f"a count must be from 1 to 2^32 - 1, not {value!r}")
    return value


class Transport(Protocol):
    """One way of moving KV between two nodes.

    Owns: its peers' mappings, and whatever it serves its own slab through; not the slab.
    Raises: only subclasses of `TransferError`.
    """

    @property
    def name(self) -> str:
        """The word for it in a `Binding` and in messages."""
        ...

    def binding(self) -> Binding:
        """Our own pool, to be told to peers."""
        ...

    def bind(self, peer: Binding) -> None:
        """Make `peer` readable, in place of an older binding of the same node.

        Raises: LayoutMismatch when its KV cannot be mapped onto ours; PeerLost when it is not there.
        """
        ...

    def unbind(self, peer: NodeId) -> None:
        """Forget `peer`; fetches from it that still run end as PeerLost. An unknown peer is fine. Does not wait."""
        ...

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        """Copy the handle's blocks into ours; blocking. Returns the bytes moved, once all of them are proven right.

        Raises: PeerLost, LeaseExpired (another generation), Corrupt (another digest), LayoutMismatch (ids that are not
        in the pools). Whatever it raises, the target blocks then hold nothing that may be used.
        """
        ...

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        """Let `reader` read this attempt's lease."""
        ...

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """Make reading through this lease impossible, as far as this transport can."""
        ...

    def close(self) -> None:
        """Give back everything that it owns, after running fetches have ended. Calling it twice is fine."""
        ...
