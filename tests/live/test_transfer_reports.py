"""How KV moves and what went wrong with it is seen at the head, from nodes that are real processes."""

import asyncio
import socket

import pytest

from cluster.live.config import NodeSlot
from cluster.live.head import NodeState
from core.goodput import Outcome
from core.mix import mix_of
from kv_transfer.faults import SWITCH
from kv_transfer.links import Offer
from tests.live.aviary import Aviary
from tests.live.posts import until
from tests.live.test_local_cluster import PAIR, running

pytestmark = pytest.mark.slow


def counts_of(node: NodeState) -> dict[str, int]:
    return dict(node.transfers.counts)


def knock_without_a_token(aviary: Aviary, node: NodeState) -> None:
    """Somebody who knows where the node's pool is, and says something there."""
    offer = Offer.unpack(aviary.cluster._head._members[node.node].running.started.binding)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(10)
        link.connect(f"\0{offer.bindings[0].address}")
        assert link.recv(4096)
        link.send(b"let me in")
        assert link.recv(4096) == b""


def test_links_strangers_and_damaged_blocks_are_told_for_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")

    async def walk() -> None:
        async with running() as aviary:
            await aviary.ask("damaged", 5, 6)
            assert await aviary.ask("sound", 5, 6) is Outcome.FINISHED
            knock_without_a_token(aviary, aviary.nodes["prefill-0"])
            await until(lambda: all(counts_of(node) for node in aviary.nodes.values()))
            prefill, decode = aviary.nodes["prefill-0"], aviary.nodes["decode-0"]
            assert counts_of(prefill) == {"refused.shm.token": 1}
            assert counts_of(decode) == {"fetch_failed.corrupt": 1}
            (link,) = decode.transfers.links
            assert (link.peer, link.transport) == (prefill.node, "shm")
            assert link.why == "shm (automatic: both nodes on one host, in one network namespace)"
            (moved,) = decode.transfers.moved
            assert (moved.transport, moved.num_fetches, moved.num_bytes) == (
                "shm",
                decode.num_fetches,
                decode.num_bytes,
            )
            assert moved.num_bytes > 0
            shown = {node.id: node.transfers for node in aviary.cluster.shown().nodes}
            assert shown[decode.node] == decode.transfers

    asyncio.run(walk())


def test_a_pool_of_another_layout_is_refused_and_counted_at_who_wanted_to_read_it() -> None:
    async def walk() -> None:
        async with running((*PAIR, NodeSlot("odd-0", mix_of("mixed", 256, 8)))) as aviary:
            await until(lambda: counts_of(aviary.nodes["decode-0"]) == {"binding_refused.layout": 1})
            assert "odd-0" not in [link.peer.partition("@")[0] for link in aviary.nodes["decode-0"].transfers.links]

    asyncio.run(walk())
