"""The lending side of a transport test: the same few deeds, in this process or in another."""

import hashlib
import json
import os
import subprocess
import sys
from typing import IO, Any, Protocol

from core.ids import LayoutId, NodeId
from core.kv import KVLayout, SlabShape
from kv_transfer.digest import block_digest
from kv_transfer.faults import NoFaults
from kv_transfer.inproc import Exchange, InprocTransport
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding, Transport

TOKEN = b"a cluster token of 32 bytes here"
LAYOUT = LayoutId("layout-a")
SMALL = SlabShape(KVLayout(num_layers=2, num_kv_heads=2, head_dim=4, block_size=4, dtype="float32"), 32)
LARGE = SlabShape(KVLayout(num_layers=8, num_kv_heads=8, head_dim=64, block_size=20, dtype="float32"), 3)
"""A block of 640 KiB: two whole pieces and half a one."""


def content(seed: int, num_bytes: int) -> bytes:
    """Bytes that differ for every seed."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(num_bytes)


class Lender(Protocol):
    """A node that has KV to lend."""

    def binding(self) -> Binding:
        """As the reader is told."""
        ...

    def write(self, block: int, generation: int, seed: int, num_bytes: int | None = None) -> bytes:
        """Fill a block, or its first bytes; returns the digest of the whole block."""
        ...

    def set_generation(self, block: int, generation: int) -> None:
        """Only the header."""
        ...

    def close(self) -> None:
        """Leave in good order."""
        ...

    def die(self) -> None:
        """Be gone without a word, as far as this kind can."""
        ...


class LocalLender:
    """In this process."""

    def __init__(self, transport: Transport, slab: Slab) -> None:
        self.transport = transport
        self.slab = slab

    def binding(self) -> Binding:
        return self.transport.binding()

    def write(self, block: int, generation: int, seed: int, num_bytes: int | None = None) -> bytes:
        size = self.slab.shape.layout.bytes_per_block if num_bytes is None else num_bytes
        self.slab.set_generation(block, generation)
        self.slab.block(block)[:size] = content(seed, size)
        return block_digest(self.slab.block(block))

    def set_generation(self, block: int, generation: int) -> None:
        self.slab.set_generation(block, generation)

    def close(self) -> None:
        self.transport.close()
        self.slab.close()

    def die(self) -> None:
        self.close()


def inproc_lender(exchange: Exchange, node: NodeId, layout: LayoutId, shape: SlabShape) -> LocalLender:
    slab = Slab.in_process(shape)
    return LocalLender(InprocTransport(node, layout, slab, exchange, NoFaults()), slab)


def shm_lender(node: NodeId, layout: LayoutId, shape: SlabShape, token: bytes = TOKEN) -> LocalLender:
    slab = Slab.anonymous(shape, "lender")
    return LocalLender(ShmTransport(node, layout, slab, token, NoFaults()), slab)


class OwnerProcess:
    """Another process that holds lenders; killed in some tests, then started anew."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.transports.owner_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, deed: str, **arguments: object) -> str:
        pipe_in, pipe_out = self._pipes()
        pipe_in.write(json.dumps({"deed": deed, **arguments}) + "\n")
        pipe_in.flush()
        return pipe_out.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart_if_dead(self) -> None:
        if self._process.poll() is not None:
            self._close_pipes()
            self._process = self._start()

    def close(self) -> None:
        self.kill()
        self._close_pipes()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _close_pipes(self) -> None:
        for pipe in self._pipes():
            pipe.close()


class RemoteLender:
    """In the other process."""

    def __init__(self, owner: OwnerProcess, node: NodeId, layout: LayoutId, shape: SlabShape) -> None:
        self._owner = owner
        self._node = node
        wanted = Binding(node, layout, shape, "shm", "-").pack().hex()
        self._binding = Binding.unpack(bytes.fromhex(owner.ask("open", wanted=wanted, token=TOKEN.hex())))

    def binding(self) -> Binding:
        return self._binding

    def write(self, block: int, generation: int, seed: int, num_bytes: int | None = None) -> bytes:
        return bytes.fromhex(self._ask("write", block=block, generation=generation, seed=seed, num_bytes=num_bytes))

    def set_generation(self, block: int, generation: int) -> None:
        self._ask("set_generation", block=block, generation=generation)

    def close(self) -> None:
        self._ask("close")

    def die(self) -> None:
        self._owner.kill()

    def _ask(self, deed: str, **arguments: Any) -> str:
        return self._owner.ask(deed, node=self._node, **arguments)
