"""Both sides in one process: a peer's slab is read where it lies."""

import secrets
import threading

from core.errors import LayoutMismatch, PeerLost
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle
from kv_transfer.faults import Faults, faults_from_environment
from kv_transfer.native.library import load
from kv_transfer.peers import Peer, Peers
from kv_transfer.relayout import fetch_blocks
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding, check_lent, check_maps_onto


class Exchange:
    """Where the nodes of one process find each other's slabs.

    Owns: the names of the slabs that are served now.
    """

    def __init__(self) -> None:
        self._served: dict[str, Slab] = {}
        self._lock = threading.Lock()

    def serve(self, slab: Slab) -> str:
        """Make a slab readable; returns its address."""
        address = secrets.token_hex(8)
        with self._lock:
            self._served[address] = slab
        return address

    def find(self, address: str) -> Slab | None:
        """The slab at an address, None where there is none any more."""
        return self._served.get(address)

    def withdraw(self, address: str) -> None:
        """Serve it no longer; fetches from it end as PeerLost."""
        with self._lock:
            self._served.pop(address, None)


class InprocTransport:
    """The transport `inproc`.

    Owns: its place in the exchange, and the bound peers.
    """

    name = "inproc"

    def __init__(
        self, node: NodeId, layout: LayoutId, slab: Slab, exchange: Exchange, faults: Faults | None = None
    ) -> None:
        self._slab = slab
        self._exchange = exchange
        self._faults = faults or faults_from_environment(slab.shape.layout)
        self._peers = Peers()
        load()  # compiled now where need be, and not within the first fetch
        self._binding = Binding(node, layout, slab.shape, self.name, exchange.serve(slab))

    def binding(self) -> Binding:
        """Our own pool, to be told to peers."""
        return self._binding

    def bind(self, peer: Binding) -> None:
        """Make `peer` readable. Raises as `Transport.bind`."""
        check_maps_onto(peer, self._binding)
        slab = self._exchange.find(peer.address)
        if slab is None:
            raise PeerLost(f"{peer.node}: no slab of this process is served at {peer.address}")
        if slab.shape != peer.shape:
            raise LayoutMismatch(f"{peer.node}: the slab at {peer.address} has another shape")
        self._peers.bind(Peer(peer, slab.view, lambda: self._exchange.find(peer.address) is slab, lambda: None))

    def unbind(self, peer: NodeId) -> None:
        """Forget `peer`."""
        self._peers.unbind(peer)

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        """Copy the handle's blocks into ours. Raises as `Transport.fetch`."""
        with self._peers.reading(handle.owner) as peer:
            check_lent(handle, peer.binding)
            return fetch_blocks(handle, into, peer, self._slab, self._faults)

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        """Nothing: a bound peer can read every block, and generations and digests tell which reads count."""

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """Nothing: memory cannot be revoked; the next writer's generation makes a late read void."""

    def close(self) -> None:
        """Withdraw our slab and let go of all peers."""
        self._exchange.withdraw(self._binding.address)
        self._peers.close()
