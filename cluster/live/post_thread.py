"""A post in a loop and thread of its own, for a node whose other threads must not wait for it."""

import asyncio
import threading
from collections.abc import Iterable

from cluster.live.mail import Letters, Notice
from cluster.live.post import Post

Batch = list[tuple[str, Letters]]
"""What one turn of a node sends: letters by peer."""


class PostThread:
    """Runs a post.

    Owns: the thread `post` and its loop; all of the post's callbacks run there.
    """

    def __init__(self, post: Post, host: str) -> None:
        self._post = post
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="post", daemon=True)

    def start(self, known: Iterable[tuple[str, str]] = ()) -> str:
        """Starts listening and admits the peers (id, address) that are known already; returns our own address."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._open(tuple(known)), self._loop).result()

    async def _open(self, known: tuple[tuple[str, str], ...]) -> str:
        address = await self._post.start(self._host)
        for peer, where in known:
            self._post.admit(peer, where)
        return address

    def send(self, batch: Batch) -> None:
        """Posts the letters of one turn; from any thread, without waiting."""
        self._loop.call_soon_threadsafe(self._send, batch)

    def _send(self, batch: Batch) -> None:
        for peer, letters in batch:
            self._post.send(peer, letters)

    def notify(self, peer: str, notice: Notice) -> None:
        """Posts a message from shell to shell; from any thread, without waiting."""
        self._loop.call_soon_threadsafe(self._post.notify, peer, notice)

    def admit(self, peer: str, address: str) -> None:
        """As `Post.admit`, from any thread."""
        self._loop.call_soon_threadsafe(self._post.admit, peer, address)

    def forget(self, peer: str) -> None:
        """As `Post.forget`, from any thread."""
        self._loop.call_soon_threadsafe(self._post.forget, peer)

    def stop(self) -> None:
        """Leaves every link and ends the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._post.stop(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_end_tasks())
        finally:
            self._loop.close()


async def _end_tasks() -> None:
    """Cancels what still runs in this loop, and waits for it."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
