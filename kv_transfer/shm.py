"""Shared memory between processes of one host: the owner hands out its slab read-only, the reader copies by itself.

The owner is not involved in a copy at all; `block_copy` says why the copy can be believed. The connection over which
the descriptor came stays open and is the sign of life: the kernel closes it when the owner's process ends, however it
ends. (A child that the owner forks without exec would hold it open: nodes start processes by exec only.)
"""

import contextlib
import fcntl
import mmap
import os
import select
import socket
import time

import numpy as np

from core.errors import LayoutMismatch, PeerLost
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle
from kv_transfer.faults import Faults, faults_from_environment
from kv_transfer.handshake import (
    GREETING,
    MAX_PACKET_BYTES,
    NONCE_BYTES,
    PROOF_BYTES,
    is_proof,
    is_same_user,
    proof,
)
from kv_transfer.knock import HANDSHAKE_S
from kv_transfer.native.library import load
from kv_transfer.peers import Peer, Peers
from kv_transfer.relayout import fetch_blocks
from kv_transfer.shm_server import SlabServer
from kv_transfer.slab import Slab, SlabView
from kv_transfer.transport import Binding, check_lent, check_maps_onto

MEASURED_BYTES = 8 << 20
"""What a measurement copies, where a pool is that large; larger than a core's own cache."""

SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class ShmTransport:
    """The transport `shm`.

    Owns: the server of our slab, and the bound peers.
    """

    name = "shm"

    def __init__(self, node: NodeId, layout: LayoutId, slab: Slab, token: bytes, faults: Faults | None = None) -> None:
        if slab.fd is None:
            raise ValueError("shm needs a slab with a descriptor: Slab.anonymous")
        self._slab = slab
        self._token = token
        self._faults = faults or faults_from_environment(slab.shape.layout)
        self._peers = Peers()
        load()  # compiled now where need be, and not within the first fetch
        self._server = SlabServer(slab.fd, token)
        self.refusals = self._server.guests.refusals
        self._binding = Binding(node, layout, slab.shape, self.name, self._server.address)
        self._server.start(self._binding)

    def binding(self) -> Binding:
        """Our own pool, to be told to peers."""
        return self._binding

    def bind(self, peer: Binding) -> None:
        """Make `peer` readable. Blocks for a handshake. Raises as `Transport.bind`."""
        check_maps_onto(peer, self._binding)
        link = _connect(peer)
        try:
            memory = _map(_receive_slab(link, peer, self._token, self._binding.node), peer)
            link.setblocking(False)
        except BaseException:
            link.close()
            raise
        self._peers.bind(
            Peer(peer, SlabView.over(memory, peer.shape), lambda: _is_open(link), lambda: _unmap(memory, link))
        )

    def unbind(self, peer: NodeId) -> None:
        """Forget `peer`; its memory is unmapped once running fetches have ended."""
        self._peers.unbind(peer)

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        """Copy the handle's blocks into ours. Raises as `Transport.fetch`."""
        with self._peers.reading(handle.owner) as peer:
            check_lent(handle, peer.binding)
            return fetch_blocks(handle, into, peer, self._slab, self._faults)

    def measure(self, peer: NodeId) -> float:
        """Bytes a second of copies from this peer's memory, measured now, digests aside. Raises PeerLost."""
        with self._peers.reading(peer) as bound:
            theirs = bound.view.blocks.reshape(-1)[:MEASURED_BYTES]
            ours = np.zeros_like(theirs)
            started = time.monotonic()
            ours[:] = theirs
            return len(theirs) / max(time.monotonic() - started, 1e-9)

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        """Nothing: a bound peer can read every block, and generations and digests tell which reads count."""

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """Nothing: a mapping cannot be taken back; the next writer's generation makes a late read void."""

    def close(self) -> None:
        """Close the door and let go of all peers."""
        self._server.close()
        self._peers.close()


def _connect(peer: Binding) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(HANDSHAKE_S)
    try:
        link.connect(f"\0{peer.address}")
        if is_same_user(link):
            return link
    except OSError as error:
        link.close()
        raise PeerLost(f"{peer.node}: nobody answers at {peer.address}: {error}") from error
    link.close()
    raise PeerLost(f"{peer.node}: {peer.address} belongs to another user")


def _receive_slab(link: socket.socket, peer: Binding, token: bytes, own: NodeId) -> int:
    """The reader's part of the handshake; returns the slab's descriptor."""
    greeting, fds = _exchange(link, b"", peer)
    owner_nonce = greeting.removeprefix(GREETING)
    if fds or len(owner_nonce) != NONCE_BYTES or not greeting.startswith(GREETING):
        _close_all(fds)
        raise PeerLost(f"{peer.node}: {peer.address} does not speak this protocol")
    nonce, name = os.urandom(NONCE_BYTES), own.encode()
    answer, fds = _exchange(link, nonce + proof(token, "reader", owner_nonce, nonce, name) + name, peer)
    try:
        given, hello = answer[:PROOF_BYTES], answer[PROOF_BYTES:]
        if len(fds) != 1 or not is_proof(given, token, "owner", owner_nonce, nonce, hello):
            raise PeerLost(f"{peer.node}: {peer.address} does not hold the cluster token")
        _check_hello(Binding.unpack(hello), peer)
        return fds.pop()
    finally:
        _close_all(fds)


def _exchange(link: socket.socket, packet: bytes, peer: Binding) -> tuple[bytes, list[int]]:
    """Send a packet, if there is one, and receive the next."""
    try:
        if packet:
            link.send(packet)
        answer, fds, _flags, _address = socket.recv_fds(link, MAX_PACKET_BYTES, 4, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise PeerLost(f"{peer.node}: the handshake broke off: {error}") from error
    if not answer:
        raise PeerLost(f"{peer.node}: turned away; the two cluster tokens differ, or it is closing")
    return answer, fds


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _check_hello(told: Binding, peer: Binding) -> None:
    if told.node != peer.node:
        raise PeerLost(f"{peer.node}: {peer.address} now belongs to {told.node}")
    if told != peer:
        raise LayoutMismatch(f"{peer.node}: says it is {told}, was announced as {peer}")


def _map(fd: int, peer: Binding) -> mmap.mmap:
    """Map a slab for reading. Without both seals its owner could shrink it under us, which would kill this process."""
    try:
        size, seals = os.fstat(fd).st_size, fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if size != peer.shape.total_bytes or seals & SIZE_SEALS != SIZE_SEALS:
            raise LayoutMismatch(f"{peer.node}: its slab has {size} bytes and seals {seals:#x}, not as announced")
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise PeerLost(f"{peer.node}: its slab cannot be mapped: {error}") from error
    finally:
        os.close(fd)


def _is_open(link: socket.socket) -> bool:
    """Whether the owner still holds its end; after the handshake it says nothing, so whatever happens is the end.

    By `poll`, for `recv` says "nothing yet" by an exception, which takes three times as long. One object a call: it may
    not be shared between threads.
    """
    poll = select.poll()
    poll.register(link, select.POLLIN)
    return not poll.poll(0)


def _unmap(memory: mmap.mmap, link: socket.socket) -> None:
    """Where a traceback still holds a view, the memory goes with it."""
    link.close()
    with contextlib.suppress(BufferError):
        memory.close()
