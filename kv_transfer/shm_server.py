"""The serving side of shared memory: a door that hands a read-only descriptor of the slab to who may read it."""

import logging
import os
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass

from core.ids import NodeId
from kv_transfer.handshake import (
    GREETING,
    MAX_PACKET_BYTES,
    NONCE_BYTES,
    PROOF_BYTES,
    check_token,
    is_proof,
    is_same_user,
    proof,
)
from kv_transfer.transport import Binding

logger = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
"""How long a guest may take to prove itself; an honest one needs less than a millisecond."""

MAX_GUESTS = 1024


@dataclass(eq=False, slots=True)
class Guest:
    """One reader's connection. `node` is empty until it has proven itself; then the link stays, as a sign of life."""

    link: socket.socket
    nonce: bytes
    late_at: float
    node: str = ""


class SlabServer:
    """Serves one slab on an abstract UNIX socket, in a thread of its own that sleeps unless somebody knocks.

    Owns: the thread, the listening socket, the guests' links, and a read-only descriptor of the slab. All of them end
    with `close`, or with the process, which is how readers see that it died.
    """

    def __init__(self, slab_fd: int, token: bytes) -> None:
        check_token(token)
        self.address = f"penstock-{os.getpid()}-{secrets.token_hex(8)}"
        self._token = token
        self._hello = b""
        self._guests: set[Guest] = set()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._bell, self._bell_end = socket.socketpair()
        self._slab_fd = os.open(f"/proc/self/fd/{slab_fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="kv-shm-server", daemon=True)

    def start(self, binding: Binding) -> None:
        """Open the door; guests are told `binding`. Raises OSError."""
        self._hello = binding.pack()
        self._listener.setblocking(False)
        try:
            self._listener.bind(f"\0{self.address}")
            self._listener.listen(64)
        except OSError:
            self._bell.close()
            self._give_back()
            raise
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._bell_end, selectors.EVENT_READ)
        self._thread.start()

    def close(self) -> None:
        """End the thread and every link. Calling it twice is fine."""
        self._bell.close()
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select(self._patience_s()):
                    if key.fileobj is self._bell_end:
                        return
                    if key.fileobj is self._listener:
                        self._admit()
                    else:
                        self._hear(key.data)
                self._drop_late()
        finally:
            self._give_back()

    def _patience_s(self) -> float | None:
        waiting = [guest.late_at for guest in self._guests if not guest.node]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _drop_late(self) -> None:
        now = time.monotonic()
        for guest in [guest for guest in self._guests if not guest.node and guest.late_at <= now]:
            self._drop(guest, "did not prove itself in time")

    def _admit(self) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError as error:
            logger.warning("kv door: cannot accept a reader: %s", error)
            time.sleep(0.05)  # out of descriptors: the knock stays pending, and would wake us at once
            return
        link.setblocking(False)
        guest = Guest(link, secrets.token_bytes(NONCE_BYTES), time.monotonic() + HANDSHAKE_S)
        self._guests.add(guest)
        self._selector.register(link, selectors.EVENT_READ, guest)
        if len(self._guests) > MAX_GUESTS:
            self._drop(guest, f"is one too many; the limit is {MAX_GUESTS}")
        elif not is_same_user(link):
            self._drop(guest, "belongs to another user")
        else:
            self._send(guest, GREETING + guest.nonce)

    def _hear(self, guest: Guest) -> None:
        try:
            packet = guest.link.recv(MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(guest, f"broke off: {error}")
            return
        if guest.node or not packet:
            self._drop(guest, "left" if not packet else "spoke after the handshake")
        else:
            self._judge(guest, packet)

    def _judge(self, guest: Guest, packet: bytes) -> None:
        nonce, given = packet[:NONCE_BYTES], packet[NONCE_BYTES : NONCE_BYTES + PROOF_BYTES]
        name = packet[NONCE_BYTES + PROOF_BYTES :]
        if not name or not is_proof(given, self._token, "reader", guest.nonce, nonce, name):
            self._drop(guest, "does not hold the cluster token")
            return
        guest.node = NodeId(name.decode(errors="replace"))
        logger.info("kv door: %s may read", guest.node)
        answer = proof(self._token, "owner", guest.nonce, nonce, self._hello) + self._hello
        self._send(guest, answer, self._slab_fd)

    def _send(self, guest: Guest, packet: bytes, *fds: int) -> None:
        try:
            socket.send_fds(guest.link, [packet], fds)
        except OSError as error:
            self._drop(guest, f"broke off: {error}")

    def _drop(self, guest: Guest, why: str) -> None:
        level = logging.INFO if guest.node else logging.WARNING
        logger.log(level, "kv door: reader %s %s", guest.node or "(nameless)", why)
        self._selector.unregister(guest.link)
        self._guests.discard(guest)
        guest.link.close()

    def _give_back(self) -> None:
        for guest in list(self._guests):
            self._drop(guest, "is sent away: the door closes")
        self._selector.close()
        self._listener.close()
        self._bell_end.close()
        os.close(self._slab_fd)
