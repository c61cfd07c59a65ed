"""How a reader proves itself at a door, and what both sides of one agree on.

The protocol is that of `handshake`, over a stream: each packet is preceded by its length, u32 in network order. Instead
of a descriptor the owner's last packet carries the hello, which its proof covers: the packed binding and whatever the
transport adds. Then the link stays, as the sign of life of both sides. A reader may say on it that it is `READING` and
that it is `DONE`; owners whose hardware cannot serve a read alone attend to it in between.
"""

import secrets
import socket
import struct
import time

from core.errors import PeerLost
from core.ids import NodeId
from kv_transfer.handshake import NONCE_BYTES, PROOF_BYTES, is_proof, is_same_user, proof

GREETING = b"penstock-door-1\n"

HANDSHAKE_S = 5.0
"""How long either side may take to prove itself; an honest one needs less than a millisecond."""

MAX_HELLO_BYTES = 64 << 10
READING, DONE = b"+", b"-"
LENGTH = struct.Struct("!I")


def knock(node: NodeId, address: str, token: bytes, own: NodeId) -> tuple[socket.socket, bytes]:
    """Prove ourselves at a door; returns the link, which stays open, and what its owner says. Raises PeerLost."""
    link = _connect(node, address)
    try:
        if link.family == socket.AF_UNIX and not is_same_user(link):
            raise PeerLost(f"{node}: {address} belongs to another user")
        return link, _shake_hands(link, node, address, token, own)
    except BaseException as error:
        link.close()
        if isinstance(error, OSError):
            raise PeerLost(f"{node}: the handshake broke off: {error}") from error
        raise


def _connect(node: NodeId, address: str) -> socket.socket:
    kind, _, rest = address.partition(":")
    try:
        if kind == "unix":
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(HANDSHAKE_S)
            link.connect(f"\0{rest}")
            return link
        host, _, port = rest.rpartition(":")
        if kind == "tcp" and port.isdecimal():
            link = socket.create_connection((host, int(port)), HANDSHAKE_S)
            keep_alive(link)
            return link
    except (OSError, ValueError, OverflowError) as error:
        raise PeerLost(f"{node}: nobody answers at {address}: {error}") from error
    raise PeerLost(f"{node}: {address!r} is no address of a door")


def _shake_hands(link: socket.socket, node: NodeId, address: str, token: bytes, own: NodeId) -> bytes:
    greeting = _receive(link, node)
    owner_nonce = greeting.removeprefix(GREETING)
    if len(owner_nonce) != NONCE_BYTES or not greeting.startswith(GREETING):
        raise PeerLost(f"{node}: {address} does not speak this protocol")
    nonce, name = secrets.token_bytes(NONCE_BYTES), own.encode()
    said = nonce + proof(token, "reader", owner_nonce, nonce, name, GREETING) + name
    link.sendall(LENGTH.pack(len(said)) + said)
    answer = _receive(link, node)
    given, hello = answer[:PROOF_BYTES], answer[PROOF_BYTES:]
    if not is_proof(given, token, "owner", owner_nonce, nonce, hello, GREETING):
        raise PeerLost(f"{node}: {address} does not hold the cluster token")
    link.settimeout(0)
    return hello


def _receive(link: socket.socket, node: NodeId) -> bytes:
    """The next packet; the deadline is the link's own, for each part."""
    received = bytearray()
    late_at = time.monotonic() + HANDSHAKE_S
    while not (packet := packet_in(received, MAX_HELLO_BYTES)):
        if packet is None:
            raise PeerLost(f"{node}: does not speak this protocol")
        if time.monotonic() > late_at:
            raise PeerLost(f"{node}: the handshake broke off: too slow")
        if not (data := link.recv(MAX_HELLO_BYTES)):
            raise PeerLost(f"{node}: turned away; the two cluster tokens differ, or it is closing")
        received += data
    return packet


def is_open(link: socket.socket) -> bool:
    """Whether the owner still holds its end; after the handshake it says nothing, so any other answer is the end."""
    try:
        link.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def packet_in(received: bytes | bytearray, limit: int) -> bytes | None:
    """The one packet that `received` is; empty while it is not whole; None where it is none."""
    if len(received) < LENGTH.size:
        return b""
    (size,) = LENGTH.unpack_from(received)
    whole = size + LENGTH.size
    if not 0 < size <= limit or len(received) > whole:
        return None
    return bytes(received[LENGTH.size :]) if len(received) == whole else b""


def keep_alive(link: socket.socket) -> None:
    """A host that vanished without a word ends the link within about 20 s."""
    if link.family == socket.AF_UNIX:
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_HELLO_BYTES)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        link.setsockopt(socket.IPPROTO_TCP, option, value)
