"""The owner's process: a pool full of sealed blocks, lent through every transport that this machine has."""

import argparse

from cluster.bench.arm_server import serve, take_output
from cluster.bench.kv_blocks import Contents
from cluster.bench.kv_plan import LAYOUTS
from cluster.bench.kv_transports import NotHere, make_transport
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import SlabShape
from kv_transfer.digest import block_digest
from kv_transfer.slab import Slab
from kv_transfer.transport import Transport

OWNER, READER, ATTEMPT = NodeId("owner@1"), NodeId("reader@1"), AttemptId("bench#1")
GENERATION = 1


def main() -> None:
    """Serves the pool until the input ends."""
    output, args = take_output(), pool_arguments()
    with Slab.anonymous(pool_shape(args), OWNER) as slab:
        owner = Owner(slab, LayoutId(args.layout))
        try:
            serve(output, {"blocks": slab.shape.num_blocks}, {"open": owner.open})
        finally:
            owner.close()


class Owner:
    """Owns: the transports over the pool."""

    def __init__(self, slab: Slab, layout: LayoutId) -> None:
        self._slab = slab
        self._layout = layout
        self._transports: dict[str, Transport] = {}
        Contents(slab.shape.layout.bytes_per_block).fill(slab.view.blocks)
        slab.view.generations[:] = GENERATION

    def open(self, transports: list[str], token: str) -> dict[str, object]:
        """Make these transports; the bindings of those that work, why the others do not, every block's digest."""
        absent = {}
        for name in transports:
            try:
                made = make_transport(name, OWNER, self._layout, self._slab, bytes.fromhex(token))
            except NotHere as why:
                absent[name] = str(why)
                continue
            made.lend(ATTEMPT, READER)
            self._transports[name] = made
        bindings = {name: each.binding().pack().hex() for name, each in self._transports.items()}
        digests = b"".join(block_digest(block) for block in self._slab.view.blocks).hex()
        return {"bindings": bindings, "absent": absent, "digests": digests}

    def close(self) -> None:
        """Let go of all of them."""
        for each in self._transports.values():
            each.close()


def pool_shape(args: argparse.Namespace) -> SlabShape:
    """The pool's shape, of as many blocks as its bytes hold."""
    layout = LAYOUTS[args.layout]
    return SlabShape(layout, args.bytes // layout.bytes_per_block)


def pool_arguments() -> argparse.Namespace:
    """What both sides are told when they start; the cluster token comes later, through a pipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layout", choices=tuple(LAYOUTS), required=True)
    parser.add_argument("--bytes", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
