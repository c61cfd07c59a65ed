"""The control connection of a two-sided transport: TCP from the reader to the owner, both proven by the cluster token.

    owner  -> reader   GREETING: the protocol's name, owner's nonce
    reader -> owner    PROOF:    reader's nonce, proof(reader), who it is, and which owner it means
    owner  -> reader   WELCOME:  proof(owner), packed binding

Afterwards the reader asks and the owner answers, one frame each; either end may close at any time.
"""

import contextlib
import secrets
import socket
import time
from dataclasses import dataclass
from typing import cast

from core.errors import LayoutMismatch, PeerLost
from core.ids import NodeId
from kv_transfer.frames import (
    HEADER,
    MAX_BODY_BYTES,
    MAX_STRANGER_BYTES,
    BadFrame,
    Kind,
    encode,
    read_body,
    read_header,
)
from kv_transfer.handshake import NONCE_BYTES, PAIR_GREETING, is_proof, proof
from kv_transfer.transport import Binding

HANDSHAKE_S = 5.0
"""How long the other side may take to prove itself; an honest one needs a round trip."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that was found sound."""

    kind: Kind
    fields: tuple[object, ...]


class Control:
    """One end of a connection.

    Owns: the socket. One thread at a time sends and receives; `interrupt` may come from any.
    Raises: OSError where the connection ended or took too long, BadFrame for what is no frame.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            link.setsockopt(socket.IPPROTO_TCP, option, value)  # a host that vanished: noticed within 20 s

    def send(self, limit_s: float, kind: Kind, *fields: object) -> None:
        """Send a frame; the other side has to take it within the limit."""
        self._link.settimeout(limit_s)
        self._link.sendall(encode(kind, *fields))

    def receive(self, limit_s: float | None, max_bytes: int = MAX_BODY_BYTES) -> Frame:
        """The next frame; waits for it without an end where the limit is None."""
        header = read_header(self._read(HEADER.size, limit_s), max_bytes)
        return Frame(header.kind, read_body(header, self._read(header.num_bytes, limit_s or HANDSHAKE_S)))

    def receive_only(self, kind: Kind, limit_s: float, max_bytes: int = MAX_BODY_BYTES) -> tuple[object, ...]:
        """The fields of the next frame, which must be of this kind."""
        frame = self.receive(limit_s, max_bytes)
        if frame.kind is not kind:
            raise BadFrame("order", f"a frame {frame.kind.name} where {kind.name} is due")
        return frame.fields

    def _read(self, num_bytes: int, limit_s: float | None) -> bytes:
        """Exactly so many bytes. The limit is for the whole, so that a dripping stranger cannot hold us."""
        data = bytearray()
        late_at = None if limit_s is None else time.monotonic() + limit_s
        while len(data) < num_bytes:
            self._link.settimeout(None if late_at is None else max(late_at - time.monotonic(), 1e-3))
            part = self._link.recv(min(num_bytes - len(data), 1 << 20))
            if not part:
                raise ConnectionError("the connection was closed")
            data += part
            if late_at is not None and limit_s and num_bytes > 1 << 16:
                late_at = time.monotonic() + limit_s  # a large body: what counts is that it moves
        return bytes(data)

    def is_open(self) -> bool:
        """Whether the other side still holds its end, as far as that shows before what it said is read."""
        try:
            self._link.setblocking(False)
            return bool(self._link.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def is_quiet(self) -> bool:
        """Whether it is open, and the other side has said nothing that was not read."""
        try:
            self._link.setblocking(False)
            self._link.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def interrupt(self) -> None:
        """Whatever waits on it ends with an error, now and later."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket. Twice is fine."""
        self._link.close()


# ── the handshake ────────────────────────────────────────────────────────────────────────────────────────────────────


def _reader_said(reader: str, owner: str) -> bytes:
    return reader.encode() + b"\n" + owner.encode()


def connect(peer: Binding, token: bytes, own: NodeId) -> Control:
    """A proven connection to `peer`. Raises PeerLost, LayoutMismatch."""
    host, _, port = peer.address.rpartition(":")
    try:
        control = Control(socket.create_connection((host.strip("[]"), int(port)), HANDSHAKE_S))
    except (OSError, ValueError, OverflowError) as error:
        raise PeerLost(f"{peer.node} is gone: nobody answers at {peer.address}: {error}") from error
    try:
        _check_told(_prove(control, peer, token, own), peer)
    except (OSError, BadFrame) as error:
        control.close()
        raise PeerLost(f"{peer.node} is gone: {peer.address} turned us away, or is closing: {error}") from error
    except BaseException:
        control.close()
        raise
    return control


def _prove(control: Control, peer: Binding, token: bytes, own: NodeId) -> Binding:
    greeting, owner_nonce = control.receive_only(Kind.GREETING, HANDSHAKE_S, MAX_STRANGER_BYTES)
    if greeting != PAIR_GREETING or len(cast(bytes, owner_nonce)) != NONCE_BYTES:
        raise PeerLost(f"{peer.node}: {peer.address} does not speak this protocol")
    nonce, theirs = secrets.token_bytes(NONCE_BYTES), cast(bytes, owner_nonce)
    answer = proof(token, "reader", theirs, nonce, _reader_said(own, peer.node), PAIR_GREETING)
    control.send(HANDSHAKE_S, Kind.PROOF, nonce, answer, str(own), str(peer.node))
    given, hello = cast(tuple[bytes, bytes], control.receive_only(Kind.WELCOME, HANDSHAKE_S, MAX_STRANGER_BYTES))
    if not is_proof(given, token, "owner", theirs, nonce, hello, PAIR_GREETING):
        raise PeerLost(f"{peer.node}: {peer.address} does not hold the cluster token")
    return Binding.unpack(hello)


def _check_told(told: Binding, peer: Binding) -> None:
    if told.node != peer.node:
        raise PeerLost(f"{peer.node} is gone: {peer.address} now belongs to {told.node}")
    if told != peer:
        raise LayoutMismatch(f"{peer.node}: says it is {told}, was announced as {peer}")


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who proved itself at our end. `wanted` is the owner that it means, which may be an incarnation before us."""

    node: NodeId
    wanted: NodeId


def welcome(control: Control, own: Binding, token: bytes) -> Visitor:
    """The owner's part; returns who is there. Raises OSError, BadFrame."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    control.send(HANDSHAKE_S, Kind.GREETING, PAIR_GREETING, nonce)
    fields = control.receive_only(Kind.PROOF, HANDSHAKE_S, MAX_STRANGER_BYTES)
    reader_nonce, given, node, wanted = cast(tuple[bytes, bytes, str, str], fields)
    said = _reader_said(node, wanted)
    is_proven = is_proof(given, token, "reader", nonce, reader_nonce, said, PAIR_GREETING)
    if len(reader_nonce) != NONCE_BYTES or not node or "\n" in node or not is_proven:
        raise BadFrame("token", f"{node or 'a nameless reader'} does not hold the cluster token")
    hello = own.pack()
    answer = proof(token, "owner", nonce, reader_nonce, hello, PAIR_GREETING)
    control.send(HANDSHAKE_S, Kind.WELCOME, answer, hello)
    return Visitor(NodeId(node), NodeId(wanted))
