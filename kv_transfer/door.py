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

from kv_transfer.guests import Guest, Guests
from kv_transfer.knock import DONE, GREETING, LENGTH, MAX_HELLO_BYTES, READING, keep_alive, packet_in

LOG = logging.getLogger(__name__)

LEAVE_S = 5.0
"""How long a closing owner waits for its guests to let go of its memory; idle ones need less than a millisecond."""

ATTEND_S = 200e-6
"""Between two looks at the hardware while somebody reads."""

LINGER_S = 0.1
"""How long it attends after a connection was cut: both ends of it need that to close it."""


class Door:
    """Serves one pool's hello, in a thread of its own that sleeps unless somebody knocks, leaves or reads.

    Owns: the thread, the listening socket and the guests, which end with `close` or with the process. It also
    watches links of our own to other doors, for whoever asks.
    """

    def __init__(self, token: bytes, attend: Callable[[], None] | None = None) -> None:
        self._attend = attend
        self._hello = b""
        self.guests = Guests(token, GREETING, self._say, self._linger_after)
        self._selector = self.guests.selector
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

    def forget(self, link: socket.socket) -> bool:
        """Watch it no longer; call before the link is closed. Whether it was watched until now: of those who ask at
        once, in any thread, one is told so."""
        try:
            self._selector.unregister(link)
        except (KeyError, ValueError, RuntimeError):
            return False
        return True

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
            while self._closes_at is None or (self.guests and time.monotonic() < self._closes_at):
                for key, _ in self._selector.select(self._patience_s()):
                    self._look(key)
                self._attend_once()
                self.guests.drop_late()
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
            if self._closes_at is None:
                self.guests.admit(self._listener)
        elif isinstance(key.data, Guest):
            self._hear(key.data)
        elif isinstance(key.fileobj, socket.socket) and self.forget(key.fileobj):
            key.data()

    @property
    def _is_attended(self) -> bool:
        return time.monotonic() < self._attends_until or any(guest.num_reads for guest in self.guests)

    def _patience_s(self) -> float | None:
        if self._attend is not None and self._is_attended:
            return ATTEND_S
        patience_s = self.guests.patience_s()
        if self._closes_at is None:
            return patience_s
        left_s = max(0.0, self._closes_at - time.monotonic())
        return left_s if patience_s is None else min(left_s, patience_s)

    def _turn_out(self) -> None:
        """Guests see our end of the link close, and leave; their memory of ours is then unmapped."""
        assert self._listener is not None
        self._closes_at = time.monotonic() + LEAVE_S
        self._selector.unregister(self._bell_end)
        self._selector.unregister(self._listener)
        self._listener.close()
        for guest in self.guests:
            if not guest.node:
                self.guests.drop(guest, "is sent away: the door closes")
                continue
            with contextlib.suppress(OSError):
                guest.link.shutdown(socket.SHUT_WR)

    def _hear(self, guest: Guest) -> None:
        data = self.guests.read(guest, 4096)
        if data and guest.node:
            self._hear_word(guest, data)
        elif data:
            guest.received += data
            self._judge(guest)

    def _hear_word(self, guest: Guest, data: bytes) -> None:
        guest.num_reads += data.count(READING) - data.count(DONE)
        if self._attend is None or data.strip(READING + DONE) or guest.num_reads < 0:
            self.guests.drop(guest, "spoke after the handshake", "speech")

    def _judge(self, guest: Guest) -> None:
        packet = packet_in(guest.received, 4096)
        if packet is None:
            self.guests.drop(guest, "sent too much", "speech")
        elif packet:
            self.guests.judge(guest, packet, self._hello)

    def _say(self, guest: Guest, packet: bytes) -> None:
        """Into a fresh socket's buffer, which takes a hello whole: who does not take it is not waited for."""
        if not guest.node:
            keep_alive(guest.link)
        data = LENGTH.pack(len(packet)) + packet
        if guest.link.send(data) < len(data):
            raise OSError("it does not listen")

    def _linger_after(self) -> None:
        """Somebody has left."""
        self._attends_until = time.monotonic() + LINGER_S

    def _give_back(self) -> None:
        for guest in self.guests:
            self.guests.drop(guest, "did not leave in time")
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        self._bell_end.close()
        self._bell.close()
