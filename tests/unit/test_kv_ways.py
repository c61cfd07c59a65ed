"""What the start says of how KV moves."""

import asyncio

from cluster.live.head import NodeState
from cluster.live.kv_ways import settled_ways, ways_sentences
from core.ids import NodeId
from core.mix import mix_of
from core.transfer import PeerLink, TransferReport

SHM, GLOO = "shm (automatic: both nodes on one host)", "gloo (automatic: a private network)"


def node(slot: str, **why: str) -> NodeState:
    links = tuple(PeerLink(NodeId(f"{peer.replace('_', '-')}@1"), said.split()[0], said) for peer, said in why.items())
    mix = mix_of("mixed", 8, 8)
    return NodeState(NodeId(f"{slot}@1"), slot, 1, "", mix, 8, None, 0, 0, 0, TransferReport(links))


def test_each_pair_is_named_once_with_its_transport_and_the_reason() -> None:
    nodes = (node("a-0", b_0=SHM, c_0=GLOO), node("b-0", a_0=SHM), node("c-0"))
    assert ways_sentences(nodes) == [f"KV moves by {GLOO}: a-0 and c-0", f"KV moves by {SHM}: a-0 and b-0"]


def test_many_pairs_are_counted() -> None:
    names = [f"n-{i}" for i in range(5)]
    nodes = tuple(node(name, **{n.replace("-", "_"): SHM for n in names if n != name}) for name in names)
    assert ways_sentences(nodes) == [f"KV moves by {SHM}: 10 pairs of nodes"]


def test_nobody_waits_for_ever_for_a_node_that_reads_no_other() -> None:
    nodes = (node("a-0", b_0=SHM), node("b-0"))
    assert asyncio.run(settled_ways(lambda: nodes, 0.1)) == [f"KV moves by {SHM}: a-0 and b-0"]
    assert asyncio.run(settled_ways(lambda: (node("a-0"),), 60.0)) == []
