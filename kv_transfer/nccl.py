"""NCCL between GPUs: the pair logic of `pair_transport` over ProcessGroupNCCL, with the blocks in device memory.

Two NCCL ranks cannot share a GPU, so this needs two. Its logic is proven with gloo in its place, over tensors of the
host; over NCCL itself it has not been run. Where a communicator fails it is aborted, and `links` goes on by the host.
"""

from datetime import timedelta
from typing import cast

import torch
from torch._C._distributed_c10d import Store

from core.errors import ConfigError
from core.ids import LayoutId, NodeId
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.packing import TensorBlocks
from kv_transfer.pair_server import PairServer
from kv_transfer.pair_transport import PairOptions, PairTransport
from kv_transfer.pairs import PROGRESS_S, PairKind, Work, World, is_available
from kv_transfer.transport import Binding
from kv_transfer.waiting import wait_until


def why_not() -> str:
    """Why this process cannot move KV by NCCL; empty where it can."""
    if not is_available("nccl"):
        return "this build of torch has no NCCL"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return ""


class NcclPairs:
    """Pairs of NCCL: each a communicator of its own, blocking until it stands and aborted when it is let go.

    Owns: nothing that outlives a pair.
    """

    name = "nccl"

    def __init__(self) -> None:
        if reason := why_not():
            raise ConfigError([f"transport: nccl cannot work here: {reason}"])
        from torch.distributed import ProcessGroupNCCL

        self._nccl = ProcessGroupNCCL

    def make(self, store: Store, rank: int) -> World:
        """A group of two. Its communicator is made by the first bytes, which `Pair` sends while the store listens."""
        options = self._nccl.Options()
        options._timeout = timedelta(seconds=PROGRESS_S)
        return cast(World, self._nccl(store, rank, 2, options))

    def wait(self, work: Work, limit_s: float) -> None:
        """NCCL's own wait holds the stream and not the caller, so it is looked at first."""
        if not wait_until(work.is_completed, limit_s):
            raise RuntimeError(f"no end within {limit_s:g} s")
        work.wait()

    def end(self, world: World) -> None:
        """Abort: what was begun must not hold the stream of somebody else."""
        cast("torch.distributed.ProcessGroupNCCL", world).abort()

    def close(self) -> None:
        """Nothing is shared."""


class NcclTransport(PairTransport):
    """The transport `nccl`, over a slab on the device that the node computes on."""

    def __init__(
        self,
        node: NodeId,
        layout: LayoutId,
        slab: DeviceSlab,
        host: str,
        token: bytes,
        options: PairOptions | None = None,
        kind: PairKind | None = None,
    ) -> None:
        kind = kind or NcclPairs()
        server = PairServer(host, token)
        try:
            binding = Binding(node, layout, slab.shape, "nccl", server.address)
            pool = TensorBlocks(slab.buffer, slab.shape, slab.digests)
            super().__init__(binding, pool, kind, server, token, options or PairOptions())
        except BaseException:
            server.close()
            raise
