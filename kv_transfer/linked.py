"""A bound peer that answers at a door: what we hold of it is given back when it is unbound, and when it ends."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.errors import LayoutMismatch, PeerLost
from kv_transfer.knock import is_open
from kv_transfer.peers import Peer
from kv_transfer.slab import SlabView
from kv_transfer.transport import Binding

LOG = logging.getLogger(__name__)


class LinkedPeer(Peer):
    """A peer whose memory we reach through something that must be given back (a mapping, a remote agent).

    Owns: the link, and the right to call `give_back`, once: when the peer is unbound or its end of the link closes,
    and no fetch uses it any more. An owner's memory is freed only when all its readers have let go, or have died.
    """

    def __init__(self, binding: Binding, link: socket.socket, give_back: Callable[[], None]) -> None:
        super().__init__(binding, SlabView.nothing(), lambda: is_open(link), self.end)
        self.link = link
        self._give_back = give_back
        self._lock = threading.Lock()
        self._num_users = 0
        self._has_ended = False
        self._is_held = True

    @contextmanager
    def using(self) -> Iterator[None]:
        """What we hold of it stays within. Raises PeerLost once it has ended."""
        with self._lock:
            if self._has_ended:
                raise PeerLost(f"{self.binding.node} is gone: its {self.binding.transport} link is closed")
            self._num_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
            self._let_go_if_over()

    def end(self) -> None:
        """It is over; what we hold goes with the last fetch. Twice is fine."""
        self._has_ended = True
        self._let_go_if_over()

    def _let_go_if_over(self) -> None:
        with self._lock:
            if self._num_users or not self._has_ended or not self._is_held:
                return
            self._is_held = False
        try:
            self._give_back()
        except Exception:  # of a driver: nothing more can be done, and the link must be closed in any case
            LOG.exception("what was held of %s could not be given back", self.binding.node)
        self.link.close()  # last: it tells the owner that its memory is free


def check_told(told: Binding, peer: Binding) -> None:
    """Raises PeerLost, LayoutMismatch unless who answered at a peer's door is who the head announced."""
    if told.node != peer.node:
        raise PeerLost(f"{peer.node}: {peer.address} now belongs to {told.node}")
    if told != peer:
        raise LayoutMismatch(f"{peer.node}: says it is {told}, was announced as {peer}")
