"""Two posts in one loop and a proxy between them that can cut or hold what passes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cluster.live.handshake import ClusterToken
from cluster.live.mail import Notice
from cluster.live.post import Post
from core.events import Event, NodeLost
from core.ids import SCHEDULER, Address, NodeId
from core.timers import Timers

GUARD_S = 20.0


@dataclass
class Recorder:
    """A mailbox that writes down what it is given."""

    letters: list[tuple[str, Address, Event]] = field(default_factory=list)
    notices: list[tuple[str, Notice]] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    severed: list[tuple[str, str]] = field(default_factory=list)

    def on_letters(self, peer: str, letters: list[tuple[Address, Event]]) -> None:
        self.letters += [(peer, to, event) for to, event in letters]

    def on_notice(self, peer: str, notice: Notice) -> None:
        self.notices.append((peer, notice))

    def on_linked(self, peer: str) -> None:
        self.linked.append(peer)

    def on_severed(self, peer: str, why: str) -> None:
        self.severed.append((peer, why))


class Proxy:
    """Passes bytes from its port to `target`; `cut` breaks what is open, `hold` keeps it open but passes nothing."""

    def __init__(self, target: str) -> None:
        self._target = target.rsplit(":", 1)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.num_connections = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        there, back = await asyncio.open_connection(*self._target)
        pair = {writer, back}
        self._writers |= pair
        pumps = [asyncio.create_task(self._pump(*ends)) for ends in ((reader, back), (there, writer))]
        await asyncio.wait(pumps)
        self._writers -= pair

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def stop(self) -> None:
        self.release()
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        while self._writers:
            await asyncio.sleep(0.001)


@dataclass
class Pair:
    """Two linked posts: `low` dials `high` through the proxy."""

    low: Post
    high: Post
    low_mail: Recorder
    high_mail: Recorder
    proxy: Proxy


FAST = Timers(heartbeat_s=0.1, progress_s=0.2, claim_s=0.3, suspect_s=0.5, dead_s=1.0)


@asynccontextmanager
async def linked_pair(timers: Timers = FAST) -> AsyncIterator[Pair]:
    """A pair on a private loopback port, both ends stopped at the end."""
    token = ClusterToken.mint()
    low_mail, high_mail = Recorder(), Recorder()
    low, high = Post("a@1", token, low_mail, timers), Post("b@1", token, high_mail, timers)
    proxy = Proxy(await high.start())
    try:
        high.admit("a@1", await low.start())
        low.admit("b@1", await proxy.start())
        await until(lambda: bool(low_mail.linked and high_mail.linked))
        yield Pair(low, high, low_mail, high_mail, proxy)
    finally:
        await low.stop()
        await high.stop()
        await proxy.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition of this loop; the guard only ends a test that would hang."""
    async with asyncio.timeout(GUARD_S):
        while not condition():
            await asyncio.sleep(0.005)


def letter(number: int) -> tuple[Address, Event]:
    """A message that can be told from others."""
    return SCHEDULER, NodeLost(NodeId(f"n@{number}"), "test")


def numbers(mail: Recorder) -> list[int]:
    """Which of `letter`'s messages came, in order."""
    return [int(event.node.partition("@")[2]) for _, _, event in mail.letters if isinstance(event, NodeLost)]
