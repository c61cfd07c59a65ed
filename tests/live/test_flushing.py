"""Who is asked to forget its cached KV, and what becomes of answers that do not come, or come late."""

import asyncio

import pytest

from cluster.live import flushing
from cluster.live.flushing import Flushes
from core.events import Event
from core.flushing import FlushAsked, Flushed
from core.ids import NodeId

A, B = NodeId("a@1"), NodeId("b@1")


def test_every_node_is_asked_and_one_that_is_silent_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flushing, "FLUSH_S", 0.05)
    asked: list[tuple[NodeId, Event]] = []

    async def scenario() -> None:
        flushes = Flushes(lambda node, event: asked.append((node, event)))
        first = asyncio.create_task(flushes.ask([A, B]))
        await asyncio.sleep(0)
        flushes.take(Flushed(A, 1, 5))
        flushes.take(Flushed(A, 1, 6))
        flushes.take(Flushed(NodeId("c@1"), 1, 6))
        assert await first == {A: 5, B: None}
        second = asyncio.create_task(flushes.ask([B]))
        await asyncio.sleep(0)
        flushes.take(Flushed(B, 1, 9))
        flushes.take(Flushed(B, 2, 3))
        assert await second == {B: 3}, "the late answer to the first question is not the second's"
        assert await flushes.ask([]) == {}

    asyncio.run(scenario())
    assert asked == [(A, FlushAsked(1)), (B, FlushAsked(1)), (B, FlushAsked(2))]
