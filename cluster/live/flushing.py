"""The operator's question to all nodes, to forget the KV that nobody uses, and their answers."""

import asyncio
from collections.abc import Callable, Iterable

from core.events import Event
from core.flushing import FlushAsked, Flushed
from core.ids import NodeId

FLUSH_S = 5.0
"""A node answers within a turn of its machine; who has not by then is lost, or about to be."""


class Flushes:
    """Asks by `tell`. Owns: the questions whose answers are waited for."""

    def __init__(self, tell: Callable[[NodeId, Event], None]) -> None:
        self._tell = tell
        self._num_asked = 0
        self._open: dict[tuple[int, NodeId], asyncio.Future[int]] = {}

    async def ask(self, nodes: Iterable[NodeId]) -> dict[NodeId, int | None]:
        """How many blocks each node has freed; None where it did not say so in time."""
        self._num_asked = number = self._num_asked + 1
        answers = {node: asyncio.get_running_loop().create_future() for node in nodes}
        self._open |= {(number, node): answer for node, answer in answers.items()}
        try:
            for node in answers:
                self._tell(node, FlushAsked(number))
            if answers:
                await asyncio.wait(answers.values(), timeout=FLUSH_S)
        finally:
            for node in answers:
                self._open.pop((number, node), None)
        return {node: answer.result() if answer.done() else None for node, answer in answers.items()}

    def take(self, event: Flushed) -> None:
        """An answer; nothing where nobody waits for it any more."""
        answer = self._open.pop((event.flush, event.node), None)
        if answer is not None and not answer.done():
            answer.set_result(event.num_blocks)
