"""Those who stand at a door, whatever is spoken at it: each proves itself in time, or is sent away and counted."""

import logging
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from core.ids import NodeId
from kv_transfer.frames import Refusals
from kv_transfer.handshake import NONCE_BYTES, PROOF_BYTES, check_token, is_proof, is_same_user, proof
from kv_transfer.knock import HANDSHAKE_S

LOG = logging.getLogger(__name__)

MAX_GUESTS = 1024


@dataclass(eq=False, slots=True)
class Guest:
    """One reader's connection. `node` is empty until it has proven itself; then the link stays, as a sign of life."""

    link: socket.socket
    nonce: bytes
    late_at: float
    node: str = ""
    num_reads: int = 0
    received: bytearray = field(default_factory=bytearray)


Say = Callable[[Guest, bytes], None]
"""Sends one packet whole, without waiting. Raises OSError."""


def _nothing() -> None:
    """Nobody wants to know."""


class Guests:
    """The guests of one door, used by its thread only.

    Owns: their links, and the count of those refused: `user`, `full`, `late`, `token`, `speech` (it said what it should
    not); and the selector, in which each guest is the data of its link, and the door adds what else it waits for.
    """

    def __init__(
        self,
        token: bytes,
        greeting: bytes,
        say: Say,
        on_leave: Callable[[], None] = _nothing,
    ) -> None:
        check_token(token)
        self.selector = selectors.DefaultSelector()
        self.refusals = Refusals()
        self._token = token
        self._greeting = greeting
        self._say = say
        self._on_leave = on_leave
        self._here: set[Guest] = set()

    def __len__(self) -> int:
        return len(self._here)

    def __iter__(self) -> Iterator[Guest]:
        return iter(tuple(self._here))

    def patience_s(self) -> float | None:
        """How long the door may sleep until somebody is late; None: for ever."""
        times = [guest.late_at for guest in self._here if not guest.node]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def admit(self, listener: socket.socket) -> None:
        """Somebody has knocked: greet them, unless they may not even try."""
        try:
            link, _ = listener.accept()
        except OSError as error:
            LOG.warning("kv door: cannot accept a reader: %s", error)
            time.sleep(0.05)  # out of descriptors: the knock stays pending, and would wake us at once
            return
        link.setblocking(False)
        guest = Guest(link, secrets.token_bytes(NONCE_BYTES), time.monotonic() + HANDSHAKE_S)
        self._here.add(guest)
        self.selector.register(link, selectors.EVENT_READ, guest)
        if len(self._here) > MAX_GUESTS:
            self.drop(guest, f"is one too many; the limit is {MAX_GUESTS}", "full")
        elif link.family == socket.AF_UNIX and not is_same_user(link):
            self.drop(guest, "belongs to another user", "user")
        else:
            self._send(guest, self._greeting + guest.nonce)

    def judge(self, guest: Guest, packet: bytes, hello: bytes) -> None:
        """Tell `hello` to who has proven itself by this packet, and send others away."""
        nonce, given = packet[:NONCE_BYTES], packet[NONCE_BYTES : NONCE_BYTES + PROOF_BYTES]
        name = packet[NONCE_BYTES + PROOF_BYTES :]
        if not name or not is_proof(given, self._token, "reader", guest.nonce, nonce, name, self._greeting):
            self.drop(guest, "does not hold the cluster token", "token")
            return
        guest.node = NodeId(name.decode(errors="replace"))
        LOG.info("kv door: %s may read", guest.node)
        self._send(guest, proof(self._token, "owner", guest.nonce, nonce, hello, self._greeting) + hello)

    def read(self, guest: Guest, max_bytes: int) -> bytes:
        """What has come; empty where there is nothing, or the guest is gone."""
        try:
            data = guest.link.recv(max_bytes)
        except BlockingIOError:
            return b""
        except OSError as error:
            self.drop(guest, f"broke off: {error}")
            return b""
        if not data:
            self.drop(guest, "left")
        return data

    def drop_late(self) -> None:
        """Send away who did not prove itself in time."""
        now = time.monotonic()
        for guest in self:
            if not guest.node and guest.late_at <= now:
                self.drop(guest, "did not prove itself in time", "late")

    def drop(self, guest: Guest, why: str, reason: str = "") -> None:
        """End its link; with a reason, it was refused. Twice is fine: a door may hear of it once more in one look."""
        if guest not in self._here:
            return
        LOG.log(
            logging.INFO if guest.node else logging.WARNING, "kv door: reader %s %s", guest.node or "(nameless)", why
        )
        if reason:
            self.refusals.add(reason)
        self.selector.unregister(guest.link)
        self._here.discard(guest)
        guest.link.close()
        self._on_leave()

    def _send(self, guest: Guest, packet: bytes) -> None:
        try:
            self._say(guest, packet)
        except OSError as error:
            self.drop(guest, f"broke off: {error}")
