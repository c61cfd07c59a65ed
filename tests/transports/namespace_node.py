"""A process that is one node's end of its links, and does as it is told on its standard input, line by line."""

import json
import sys

from cluster.live.transports import Endpoint, open_links
from core.errors import TransferError
from core.ids import AttemptId, NodeId
from core.kv import FetchTarget, KVHandle, KVLayout, SlabShape
from kv_transfer.digest import block_digest
from kv_transfer.links import Links
from kv_transfer.slab import Slab
from tests.transports.lenders import LAYOUT, TOKEN, content

SHAPE = SlabShape(KVLayout(num_layers=4, num_kv_heads=2, head_dim=64, block_size=16, dtype="float32"), 64)
"""Blocks of 64 KiB."""


class End:
    """What the node can be told."""

    def __init__(self, node: str, host: str) -> None:
        self.slab = Slab.anonymous(SHAPE, node)
        self.links: Links = open_links("auto", Endpoint(NodeId(node), LAYOUT, self.slab, host, TOKEN))

    def offer(self) -> str:
        return self.links.offer().hex()

    def write(self, block: int, generation: int) -> str:
        self.slab.set_generation(block, generation)
        self.slab.block(block)[:] = content(block, SHAPE.layout.bytes_per_block)
        return block_digest(self.slab.block(block)).hex()

    def lend(self, attempt: str, reader: str) -> str:
        self.links.lend(AttemptId(attempt), NodeId(reader))
        return "lent"

    def bind(self, offer: str) -> str:
        return str(self.links.way_to(self.links.bind(bytes.fromhex(offer))))

    def fetch(self, owner: str, blocks: list[int], generation: int, digests: list[str]) -> str:
        """Into the blocks of the same numbers; answers with the bytes moved, or with the error."""
        generations = (generation,) * len(blocks)
        columns = (tuple(blocks), generations, tuple(bytes.fromhex(digest) for digest in digests))
        handle = KVHandle(AttemptId("r#1"), NodeId(owner), LAYOUT, 0, *columns)
        try:
            return str(self.links.fetch(handle, FetchTarget(tuple(blocks), generations)))
        except TransferError as error:
            return f"{type(error).__name__}: {error}"

    def digest(self, block: int) -> str:
        return block_digest(self.slab.block(block)).hex()


def main() -> None:
    """Arguments: node id and address; serves until the input ends."""
    end = End(*sys.argv[1:])
    for line in sys.stdin:
        order = json.loads(line)
        print(getattr(end, order.pop("deed"))(**order), flush=True)
    end.links.close()
    end.slab.close()


if __name__ == "__main__":
    main()
