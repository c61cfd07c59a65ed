"""A host by itself: its threads, and what it gives back."""

import asyncio
import threading
from pathlib import Path

from cluster.live.config import NodeSettings
from cluster.live.handshake import ClusterToken
from cluster.live.host import Host
from cluster.live.orders import HeadPlace, NodeOrder, StartedNode
from cluster.live.post import Post
from core.events import AttemptFinished, Submitted
from core.ids import SCHEDULER, AttemptId, GatewayId, NodeId
from core.mix import mix_of
from core.timers import Timers
from tests.live.parrot import build_parrot, question
from tests.live.posts import FAST, Recorder, until


def order(head: str, token: ClusterToken, timers: Timers = FAST) -> NodeOrder:
    return NodeOrder(
        "prefill-0",
        mix_of("prefill", 256, 8),
        NodeSettings(Path("model")),
        timers,
        HeadPlace("head@1", head, 1),
        token,
    )


def test_an_order_and_a_started_node_survive_their_way() -> None:
    sent = order("127.0.0.1:1", ClusterToken.mint())
    assert NodeOrder.unpack(sent.pack()) == sent
    host = Host(build_parrot(sent, lambda phase, share: None), sent)
    started = host.start()
    host.stop()
    assert StartedNode.from_wire(started.to_wire()) == started


def test_a_stopped_host_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    asked = order("127.0.0.1:1", ClusterToken.mint())
    host = Host(build_parrot(asked, lambda phase, share: None), asked)
    host.start()
    host.stop()
    assert host.wait() == ""
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not left & {"machine", "steps", "fetch-0", "fetch-1", "post"}


def test_a_host_answers_its_head_and_is_over_when_the_head_is_gone() -> None:
    token, mail = ClusterToken.mint(), Recorder()

    async def walk() -> None:
        head = Post("head@1", token, mail, FAST)
        asked = order(await head.start(), token)
        host = Host(build_parrot(asked, lambda phase, share: None), asked)
        started = host.start()
        head.admit(started.node, started.address)
        gone = NodeId("decode-0@gone")
        request = question("fails", (14,))
        submitted = Submitted(AttemptId("fails#0"), request, b"", GatewayId("g"), gone, 0.0)
        head.send(started.node, [(started.node, submitted), (NodeId("another@1"), submitted)])
        await until(lambda: bool(mail.letters))
        ((peer, to, event),) = mail.letters
        assert (peer, to, type(event)) == (started.node, SCHEDULER, AttemptFinished)
        assert host.num_foreign == 1
        await head.stop()
        assert "the link to the head is severed" in await asyncio.to_thread(host.wait)
        await asyncio.to_thread(host.stop)

    asyncio.run(walk())
