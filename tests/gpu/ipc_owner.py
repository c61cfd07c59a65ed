"""A process that lends KV of a GPU by `cuda_ipc`, and does as it is told on its standard input, line by line."""

import hashlib
import json
import sys

import numpy as np

from core.ids import LayoutId, NodeId
from core.kv import KVLayout, SlabShape
from kv_transfer.cuda_device import CudaDevice
from kv_transfer.cuda_ipc import CudaIpcTransport, IpcOptions
from kv_transfer.device import Device
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.faults import NoFaults

TOKEN = b"a cluster token of 32 bytes here"
LAYOUT = LayoutId("layout-a")
OWNER = NodeId("owner@1")
SHAPE = SlabShape(KVLayout(num_layers=32, num_kv_heads=8, head_dim=128, block_size=16, dtype="bfloat16"), 512)
"""An 8B model's blocks of 2 MiB, 1 GiB of them."""


def content(seed: int, num_bytes: int) -> bytes:
    """Bytes that differ for every seed."""
    start = int.from_bytes(hashlib.sha256(seed.to_bytes(8, "little")).digest()[:8], "little")
    return np.random.Generator(np.random.SFC64(start)).bytes(num_bytes)


class Owner:
    """A slab with its transport."""

    def __init__(self, device: Device) -> None:
        self.slab = DeviceSlab(device, SHAPE)
        self.transport = CudaIpcTransport(OWNER, LAYOUT, self.slab, TOKEN, IpcOptions(faults=NoFaults()))

    def do(self, deed: str, block: int = 0, generation: int = 0, seed: int = 0) -> str:
        """One deed; returns the answer's line."""
        if deed == "binding":
            return self.transport.binding().pack().hex()
        if deed == "close":
            self.transport.close()
            self.slab.close()
            return "closed"
        self.slab.set_generation(block, generation)
        if deed == "write":
            self.slab.write_block(block, content(seed, SHAPE.layout.bytes_per_block))
        return self.slab.digests((block,))[0].hex()


def main() -> None:
    """Serve until the input ends."""
    owner = Owner(CudaDevice())
    for line in sys.stdin:
        print(owner.do(**json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
