"""A real node's machine over the fake executor."""

from cluster.bench.kv_waste import Pretended
from cluster.node import Node, NodeConfig
from core.ids import LayoutId, NodeId
from core.kv import KVLayout
from core.mix import mix_of
from engine.fake import FakeExecutor
from engine.fake_memory import FakeMemory


def pretended_node(num_blocks: int = 128) -> tuple[Node, Pretended]:
    """A mixed node and what runs its steps."""
    mix = mix_of("mixed", 32, 8)
    config = NodeConfig(LayoutId("x"), KVLayout(1, 1, 2, 4, "float32"), num_blocks, 512, frozenset(), mix)
    return Node(NodeId("n@1"), config), Pretended(FakeExecutor(FakeMemory(num_blocks, 4)))
