"""The other nodes, as one node's links know them: where their pools are, and which of them can be read now."""

import threading
from collections.abc import Iterable

from cluster.api.v1.post_pb2 import Peer
from core.errors import PeerLost
from core.ids import NodeId
from kv_transfer.links import Links


class Neighbours:
    """Follows what the head says of the other nodes; binds a pool when it is first needed.

    Owns: which peers there are and which of their pools are bound. Used by the post's and the fetches' threads.
    Invariant: only the pool of a peer that is there stays bound.
    """

    def __init__(self, links: Links) -> None:
        self._links = links
        self._peers: dict[NodeId, Peer] = {}
        self._bound: set[NodeId] = set()
        self._lock = threading.Lock()
        self._binding = threading.Lock()

    def change(self, peers: Iterable[Peer]) -> tuple[list[Peer], list[NodeId]]:
        """Takes the peers that there are now; returns those that are new and the names of those that are gone."""
        now = {NodeId(peer.id): peer for peer in peers}
        with self._lock:
            before, self._peers = self._peers, now
        gone = sorted(before.keys() - now.keys())
        for node in gone:
            self.unbind(node)
        return [now[node] for node in sorted(now.keys() - before.keys())], gone

    def unbind(self, node: NodeId) -> None:
        """Nothing is read from this peer's pool any more, until it is needed again. Does not wait."""
        with self._lock:
            self._bound.discard(node)
        self._links.unbind(node)

    def reach(self, node: NodeId) -> None:
        """Makes a peer's pool readable; may wait for the peer. Raises TransferError as `Links.bind`."""
        with self._binding:
            with self._lock:
                if node in self._bound:
                    return
                peer = self._peers.get(node)
            if peer is None:
                raise PeerLost(f"{node} is not there any more")
            self._links.bind(peer.binding)
            with self._lock:
                if self._peers.get(node) is peer:
                    self._bound.add(node)
                    return
        self._links.unbind(node)
        raise PeerLost(f"{node} left while its pool was bound")
