"""One peer of a post."""

import asyncio
import time

from cluster.live.link import Link
from core.events import Event
from core.ids import Address


class Line:
    """One peer as we know it: its link, what waits for the end of this turn, and the stream of the moment."""

    def __init__(self, peer: str, dead_s: float) -> None:
        self.peer = peer
        self.link = Link(time.monotonic(), dead_s)
        self.outbox: list[tuple[Address, Event]] = []
        self.wake = asyncio.Event()
        self.beat = False
        self.is_linked = False
        self.dialer: asyncio.Task[None] | None = None
        self.stream: set[asyncio.Task[None]] = set()

    def hang_up(self) -> None:
        """Ends the stream of the moment; the link stays."""
        for task in self.stream:
            task.cancel()
        self.stream = set()
