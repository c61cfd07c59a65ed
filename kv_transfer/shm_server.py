"""The serving side of shared memory: a door that hands a read-only descriptor of the slab to who may read it."""

import os
import secrets
import selectors
import socket
import threading

from kv_transfer.guests import Guest, Guests
from kv_transfer.handshake import GREETING, MAX_PACKET_BYTES
from kv_transfer.transport import Binding


class SlabServer:
    """Serves one slab on an abstract UNIX socket, in a thread of its own that sleeps unless somebody knocks.

    Owns: the thread, the listening socket, the guests, and a read-only descriptor of the slab. All of them end
    with `close`, or with the process, which is how readers see that it died.
    """

    def __init__(self, slab_fd: int, token: bytes) -> None:
        self.address = f"penstock-{os.getpid()}-{secrets.token_hex(8)}"
        self._hello = b""
        self.guests = Guests(token, GREETING, self._say)
        self._selector = self.guests.selector
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
                for key, _ in self._selector.select(self.guests.patience_s()):
                    if key.fileobj is self._bell_end:
                        return
                    if key.fileobj is self._listener:
                        self.guests.admit(self._listener)
                    else:
                        self._hear(key.data)
                self.guests.drop_late()
        finally:
            self._give_back()

    def _hear(self, guest: Guest) -> None:
        packet = self.guests.read(guest, MAX_PACKET_BYTES)
        if packet and guest.node:
            self.guests.drop(guest, "spoke after the handshake", "speech")
        elif packet:
            self.guests.judge(guest, packet, self._hello)

    def _say(self, guest: Guest, packet: bytes) -> None:
        """The slab goes with the answer to who has proven itself."""
        socket.send_fds(guest.link, [packet], [self._slab_fd] if guest.node else [])

    def _give_back(self) -> None:
        for guest in self.guests:
            self.guests.drop(guest, "is sent away: the door closes")
        self._selector.close()
        self._listener.close()
        self._bell_end.close()
        os.close(self._slab_fd)
