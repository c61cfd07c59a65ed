"""The pools that we can read: one mapping per peer, given back when nothing reads through it any more."""

import threading
from collections.abc import Callable

from core.errors import PeerLost
from core.ids import NodeId
from kv_transfer.slab import SlabView
from kv_transfer.transport import Binding


class Peer:
    """A peer's mapped pool.

    Owns: the right to read it: `unmap` is called exactly once, when the peer is retired and its last fetch has ended.
    """

    def __init__(
        self, binding: Binding, view: SlabView, is_there: Callable[[], bool], unmap: Callable[[], None]
    ) -> None:
        self.binding = binding
        self.view = view
        self._is_there = is_there
        self._unmap = unmap
        self._retired = False
        self._dead = False

    def check(self) -> None:
        """Raises PeerLost when the peer has died or we have let go of it. Asked before, between and after copies."""
        if self._retired:
            raise PeerLost(f"{self.binding.node} was unbound")
        if self._dead or not self._is_there():
            self._dead = True
            raise PeerLost(f"{self.binding.node} is gone: its {self.binding.transport} link is closed")

    def retire(self) -> None:
        """From now on every `check` fails."""
        self._retired = True

    def unmap(self) -> None:
        """Let go of the memory."""
        self.view = SlabView.nothing()
        self._unmap()


class Peers:
    """All mapped peers of one transport.

    Owns: the mappings and the count of fetches that run through each.
    Invariant: a mapping in use is never unmapped; a retired one is as soon as its count is 0.
    """

    def __init__(self) -> None:
        self._bound: dict[NodeId, Peer] = {}
        self._users: dict[Peer, int] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closed = False

    def bind(self, peer: Peer) -> None:
        """Read from this peer, in place of an older mapping of the same node. Raises PeerLost after `close`."""
        with self._changed:
            if not self._closed:
                self._retire(self._bound.pop(peer.binding.node, None))
                self._bound[peer.binding.node] = peer
                self._users[peer] = 0
                return
        peer.unmap()
        raise PeerLost("this transport is closed")

    def unbind(self, node: NodeId) -> None:
        """Retire this peer, if there is one."""
        with self._changed:
            self._retire(self._bound.pop(node, None))

    def reading(self, node: NodeId) -> "Reading":
        """Holds the peer's mapping for one fetch. Raises, on entry, PeerLost when it is not bound or not there."""
        return Reading(self, node)

    def acquire(self, node: NodeId) -> Peer:
        """Hold a peer's mapping until `release`. Raises PeerLost when it is not bound."""
        with self._lock:
            peer = self._bound.get(node)
            if peer is None:
                raise PeerLost(f"{node} is not bound")
            self._users[peer] += 1
            return peer

    def release(self, peer: Peer) -> None:
        """The end of what `acquire` began."""
        with self._lock:
            self._users[peer] -= 1
            self._unmap_if_over(peer)

    def close(self) -> None:
        """Retire all peers and wait until the fetches that run have noticed."""
        with self._changed:
            self._closed = True
            while self._bound:
                self._retire(self._bound.popitem()[1])
            self._changed.wait_for(lambda: not self._users)

    def _retire(self, peer: Peer | None) -> None:
        if peer is not None:
            peer.retire()
            self._unmap_if_over(peer)

    def _unmap_if_over(self, peer: Peer) -> None:
        if self._users[peer] == 0 and self._bound.get(peer.binding.node) is not peer:
            del self._users[peer]
            peer.unmap()
            self._changed.notify_all()


class Reading:
    """One fetch's hold of a mapping. Not a generator: a small fetch is over in the time that one takes to set up."""

    __slots__ = ("_node", "_peer", "_peers")

    def __init__(self, peers: Peers, node: NodeId) -> None:
        self._peers = peers
        self._node = node

    def __enter__(self) -> Peer:
        self._peer = self._peers.acquire(self._node)
        try:
            self._peer.check()
        except BaseException:
            self._peers.release(self._peer)
            raise
        return self._peer

    def __exit__(self, *_: object) -> None:
        self._peers.release(self._peer)
