"""What gRPC's asyncio makes of a cancellation, and what we make of that."""

import asyncio
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest

from cluster.api.v1.post_pb2 import Envelope
from cluster.live import joining, post
from cluster.live.handshake import ClusterToken
from cluster.live.introduction import read
from cluster.live.joining import knock, mint_gateway_id
from cluster.live.post import Post
from tests.live.posts import FAST, Recorder

GUARD_S = 10.0


class DeafCall:
    """A call as gRPC's are where it fails as its reader is cancelled: that failure is raised, nothing else. Later ones
    obey, so that a test that fails ends."""

    deaf_for = 0

    async def read(self) -> object:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            DeafCall.deaf_for -= 1
            if DeafCall.deaf_for < 0:
                raise
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "gone") from None
        raise AssertionError("nobody sets it")

    async def write(self, envelope: Envelope) -> None:
        raise AssertionError("nothing was read yet")

    def cancel(self) -> None:
        pass


@pytest.fixture(autouse=True)
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeafCall, "deaf_for", 2)
    monkeypatch.setattr(post, "PostStub", lambda channel: SimpleNamespace(Link=DeafCall))
    monkeypatch.setattr(joining, "ReceptionStub", lambda channel: SimpleNamespace(Join=DeafCall))


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_who_is_cancelled_while_it_reads_is_cancelled_whatever_the_call_says() -> None:
    async def walk() -> None:
        reading = asyncio.create_task(read(DeafCall()))
        await turns()
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()

    asyncio.run(walk())


def test_who_was_cancelled_before_may_still_read_to_clean_up() -> None:
    class Answers(DeafCall):
        async def read(self) -> object:
            return grpc.aio.EOF

    async def clean_up() -> object:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await read(Answers())

    async def walk() -> None:
        cleaning = asyncio.create_task(clean_up())
        await turns()
        cleaning.cancel()
        assert await cleaning is grpc.aio.EOF

    asyncio.run(walk())


def test_a_post_that_stops_dials_nobody_any_more() -> None:
    async def walk() -> None:
        dials = Post("a@1", ClusterToken.mint(), Recorder(), FAST)
        await dials.start()
        dials.admit("b@1", "127.0.0.1:1")
        await turns()
        async with asyncio.timeout(GUARD_S):
            await dials.stop()

    asyncio.run(walk())


def test_a_gateway_that_is_stopped_while_it_knocks_does_not_take_that_for_an_absent_head() -> None:
    async def walk() -> None:
        knocking = asyncio.create_task(knock("127.0.0.1:1", ClusterToken.mint(), mint_gateway_id()))
        await turns()
        knocking.cancel()
        await asyncio.wait([knocking], timeout=GUARD_S)
        assert knocking.cancelled()

    asyncio.run(walk())
