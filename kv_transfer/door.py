"""A door at which a node proves itself and is told how to read our pool, for transports that hand out no descriptor.

`knock` says what is spoken at it. Nothing is told to who does not hold the cluster token, or, on this machine, is
another user.
"""

import contextlib
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from core.ids import NodeId
from kv_transfer.handshake import NONCE_BYTES, PROOF_BYTES, check_token, is_proof, is_same_user, proof
from kv_transfer.knock import DONE, GREETING, HANDSHAKE_S, LENGTH, MAX_HELLO_BYTES, READING, keep_alive, packet_in

LOG = logging.getLogger(__name__)

LEAVE_S = 5.0
"""How long a closing owner waits for its guests to let go of its memory; idle ones need less than a millisecond."""

ATTEND_S = 200e-6
"""Between two looks at the hardware while somebody reads."""

LINGER_S = 0.1
"""How long it attends after a connection was cut: both ends of it need that to close it."""

MAX_GUESTS = 1024


@dataclass(eq=False, slots=True)
class Guest:
    """One reader's connection. `node` is empty until it has proven itself."""

    link: socket.socket
    nonce: bytes
    late_at: float
    node: str = ""
    num_reads: int = 0
    received: bytearray = field(default_factory=bytearray)


class Door:
    """Serves one pool's hello, in a thread of its own that sleeps unless somebody knocks, leaves or reads.

    Owns: the thread, the listening socket and the guests' links, which end with `close` or with the process. It also
    watches links of our own to other doors, for whoever asks.
    """

    def __init__(self, token: bytes, attend: Callable[[], None] | None = None) -> None:
        check_token(token)
        self._token = token
        self._attend = attend
        self._hello = b""
        self._guests: set[Guest] = set()
        self._selector = selectors.DefaultSelector()
        self._bell, self._bell_end = socket.socketpair()
        self._bell_end.setblocking(False)
        self._listener: socket.socket | None = None
        self._closes_at: float | None = None
        self._attends_until = 0.0
        self._thread = threading.Thread(target=self._serve, name="kv-door", daemon=True)

    def open(self, host: str | None = None) -> str:
        """Listen on the host's address, or only on this machine where that is None; returns the address."""
        address: tuple[str, int] | str
        if host is None:
            listener, address = socket.socket(socket.AF_UNIX), f"\0penstock-{secrets.token_hex(8)}"
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener, address = socket.socket(family), (host, 0)
        self._listener = listener
        listener.bind(address)
        listener.setblocking(False)
        listener.listen(64)
        if isinstance(address, str):
            return f"unix:{address[1:]}"
        return f"tcp:{host}:{listener.getsockname()[1]}"

    def start(self, hello: bytes) -> None:
        """Let guests in; each that proves itself is told `hello`."""
        assert self._listener is not None and len(hello) < MAX_HELLO_BYTES
        self._hello = hello
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._bell_end, selectors.EVENT_READ)
        self._thread.start()

    def watch(self, link: socket.socket, on_end: Callable[[], None]) -> None:
        """Call `on_end`, in the door's thread, when the owner at the other end of our link ends it."""
        with contextlib.suppress(KeyError, ValueError, RuntimeError):  # a door that has closed watches nothing
            self._selector.register(link, selectors.EVENT_READ, on_end)

    def forget(self, link: socket.socket) -> None:
        """Watch it no longer; call before the link is closed."""
        with contextlib.suppress(KeyError, ValueError, RuntimeError):
            self._selector.unregister(link)

    def linger(self) -> None:
        """Attend for a moment, for a connection that was just cut."""
        self._attends_until = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):  # closed, and nobody attends any more
            self._bell.send(DONE)

    def close(self) -> None:
        """Turn everybody out, giving guests a moment to leave by themselves, and end the thread. Twice is fine."""
        self._bell.close()
        if self._thread.is_alive():
            self._thread.join()
        elif self._thread.ident is None:
            self._give_back()

    # ── the door's thread ────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        try:
            while self._closes_at is None or (self._guests and time.monotonic() < self._closes_at):
                for key, _ in self._selector.select(self._patience_s()):
                    self._look(key)
                self._attend_once()
                self._drop_late()
        finally:
            self._give_back()

    def _attend_once(self) -> None:
        if self._attend is None or not self._is_attended:
            return
        try:
            self._attend()
        except Exception:  # of a driver; the door has to stay
            LOG.exception("kv door: cannot attend to readers")
            time.sleep(LINGER_S)

    def _look(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._bell_end:
            if not self._bell_end.recv(64):
                self._turn_out()
        elif key.fileobj is self._listener:
            self._admit()
        elif isinstance(key.data, Guest):
            self._hear(key.data)
        else:
            self._selector.unregister(key.fileobj)
            key.data()

    @property
    def _is_attended(self) -> bool:
        return time.monotonic() < self._attends_until or any(guest.num_reads for guest in self._guests)

    def _patience_s(self) -> float | None:
        if self._attend is not None and self._is_attended:
            return ATTEND_S
        times = [guest.late_at for guest in self._guests if not guest.node]
        if self._closes_at is not None:
            times.append(self._closes_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _turn_out(self) -> None:
        """Guests see our end of the link close, and leave; their memory of ours is then unmapped."""
        assert self._listener is not None
        self._closes_at = time.monotonic() + LEAVE_S
        self._selector.unregister(self._bell_end)
        self._selector.unregister(self._listener)
        self._listener.close()
        for guest in list(self._guests):
            if not guest.node:
                self._drop(guest, "is sent away: the door closes")
                continue
            with contextlib.suppress(OSError):
                guest.link.shutdown(socket.SHUT_WR)

    def _drop_late(self) -> None:
        now = time.monotonic()
        for guest in [guest for guest in self._guests if not guest.node and guest.late_at <= now]:
            self._drop(guest, "did not prove itself in time")

    def _admit(self) -> None:
        assert self._listener is not None
        try:
            link, _ = self._listener.accept()
        except OSError as error:
            LOG.warning("kv door: cannot accept a reader: %s", error)
            time.sleep(0.05)  # out of descriptors: the knock stays pending, and would wake us at once
            return
        link.setblocking(False)
        guest = Guest(link, secrets.token_bytes(NONCE_BYTES), time.monotonic() + HANDSHAKE_S)
        self._guests.add(guest)
        self._selector.register(link, selectors.EVENT_READ, guest)
        if len(self._guests) > MAX_GUESTS:
            self._drop(guest, f"is one too many; the limit is {MAX_GUESTS}")
        elif link.family == socket.AF_UNIX and not is_same_user(link):
            self._drop(guest, "belongs to another user")
        else:
            keep_alive(link)
            self._send(guest, GREETING + guest.nonce)

    def _hear(self, guest: Guest) -> None:
        try:
            data = guest.link.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(guest, f"broke off: {error}")
            return
        if not data:
            self._drop(guest, "left")
        elif guest.node:
            self._hear_word(guest, data)
        else:
            guest.received += data
            self._judge(guest)

    def _hear_word(self, guest: Guest, data: bytes) -> None:
        guest.num_reads += data.count(READING) - data.count(DONE)
        if self._attend is None or data.strip(READING + DONE) or guest.num_reads < 0:
            self._drop(guest, "spoke after the handshake")

    def _judge(self, guest: Guest) -> None:
        packet = packet_in(guest.received, 4096)
        if packet is None:
            self._drop(guest, "sent too much")
        if not packet:
            return
        nonce, given = packet[:NONCE_BYTES], packet[NONCE_BYTES : NONCE_BYTES + PROOF_BYTES]
        name = packet[NONCE_BYTES + PROOF_BYTES :]
        if not name or not is_proof(given, self._token, "reader", guest.nonce, nonce, name, GREETING):
            self._drop(guest, "does not hold the cluster token")
            return
        guest.node = NodeId(name.decode(errors="replace"))
        LOG.info("kv door: %s may read", guest.node)
        self._send(guest, proof(self._token, "owner", guest.nonce, nonce, self._hello, GREETING) + self._hello)

    def _send(self, guest: Guest, packet: bytes) -> None:
        """Into a fresh socket's buffer, which takes a hello whole: who does not take it is not waited for."""
        data = LENGTH.pack(len(packet)) + packet
        try:
            if guest.link.send(data) == len(data):
                return
            why = "does not listen"
        except OSError as error:
            why = f"broke off: {error}"
        self._drop(guest, why)

    def _drop(self, guest: Guest, why: str) -> None:
        level = logging.INFO if guest.node else logging.WARNING
        LOG.log(level, "kv door: reader %s %s", guest.node or "(nameless)", why)
        self._selector.unregister(guest.link)
        self._guests.discard(guest)
        guest.link.close()
        self._attends_until = time.monotonic() + LINGER_S

    def _give_back(self) -> None:
        for guest in list(self._guests):
            self._drop(guest, "did not leave in time")
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        self._bell_end.close()
        self._bell.close()
