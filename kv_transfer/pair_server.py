"""The door of a two-sided transport: a listening socket, and a thread for each reader that comes."""

import contextlib
import logging
import socket
import threading
import time

from kv_transfer.control import Control
from kv_transfer.handshake import check_token
from kv_transfer.serving import Served, Session

LOG = logging.getLogger(__name__)

MAX_READERS = 256
"""Connections at once, each with a thread; one more is closed unheard."""


class PairServer:
    """Listens on one address of this node, at a port of the kernel's choice.

    Owns: the listening socket, its thread, and all sessions with theirs. All of them end with `close`.
    """

    def __init__(self, host: str, token: bytes) -> None:
        check_token(token)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=64)
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._listener.getsockname()[1]}"
        self._sessions: dict[Session, threading.Thread] = {}
        self._lock = threading.Lock()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def start(self, served: Served) -> None:
        """Let readers in."""
        name = f"kv-{served.kind.name}-door"
        self._thread = threading.Thread(target=self._listen, args=(served,), name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the door and every session; waits for what is being sent, up to the progress limit. Twice is fine."""
        with self._lock:
            self._is_closing = True
            sessions = dict(self._sessions)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in accept
        if self._thread is not None:
            self._thread.join()
        self._listener.close()
        for session in sessions:
            session.interrupt()
        for thread in sessions.values():
            thread.join()

    def _listen(self, served: Served) -> None:
        while not self._is_closing:
            try:
                link, _address = self._listener.accept()
            except OSError as error:
                if not self._is_closing:
                    LOG.warning("kv door: cannot accept a reader: %s", error)
                    time.sleep(0.05)  # out of descriptors: the knock stays pending, and would wake us at once
                continue
            self._admit(link, served)

    def _admit(self, link: socket.socket, served: Served) -> None:
        try:
            session = Session(Control(link), served)
        except OSError:  # it has left already
            link.close()
            return
        with self._lock:
            if self._is_closing or len(self._sessions) >= MAX_READERS:
                LOG.warning("kv door: a reader is one too many; the limit is %d", MAX_READERS)
                session.close()
                return
            thread = threading.Thread(target=self._run, args=(session,), name="kv-session", daemon=True)
            self._sessions[session] = thread
            thread.start()

    def _run(self, session: Session) -> None:
        try:
            session.run()
        finally:
            with self._lock:
                self._sessions.pop(session, None)
