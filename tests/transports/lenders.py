"""The lending side of a transport test: the same few deeds, in this process or in another."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any, Protocol

from core.ids import AttemptId, LayoutId, NodeId
from core.kv import KVLayout, SlabShape
from kv_transfer.digest import block_digest
from kv_transfer.faults import NoFaults
from kv_transfer.gloo import GlooTransport
from kv_transfer.inproc import Exchange, InprocTransport
from kv_transfer.packing import HostBlocks
from kv_transfer.pair_transport import PairOptions
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

    def lend(self, attempt: str, reader: str) -> None:
        """Let the reader read this attempt's lease."""
        ...

    def revoke(self, attempt: str, reader: str) -> None:
        """Let it read no more."""
        ...

    def while_read(self, deed: str, **arguments: object) -> None:
        """Do one of these deeds while blocks are read next, if it is the owner who reads them."""
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
        self._next: list[Callable[[], object]] = []

    def binding(self) -> Binding:
        return self.transport.binding()

    def write(self, block: int, generation: int, seed: int, num_bytes: int | None = None) -> bytes:
        size = self.slab.shape.layout.bytes_per_block if num_bytes is None else num_bytes
        self.slab.set_generation(block, generation)
        self.slab.block(block)[:size] = content(seed, size)
        return block_digest(self.slab.block(block))

    def set_generation(self, block: int, generation: int) -> None:
        self.slab.set_generation(block, generation)

    def lend(self, attempt: str, reader: str) -> None:
        self.transport.lend(AttemptId(attempt), NodeId(reader))

    def revoke(self, attempt: str, reader: str) -> None:
        self.transport.revoke(AttemptId(attempt), NodeId(reader))

    def while_read(self, deed: str, **arguments: object) -> None:
        self._next.append(lambda: getattr(self, deed)(**arguments))

    def meanwhile(self) -> None:
        """Called between the owner's two looks at its header."""
        while self._next:
            self._next.pop()()

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


def gloo_lender(node: NodeId, layout: LayoutId, shape: SlabShape, token: bytes = TOKEN) -> LocalLender:
    slab = Slab.anonymous(shape, "lender")
    made: list[LocalLender] = []
    options = PairOptions(NoFaults(), meanwhile=lambda: made[0].meanwhile())
    made.append(LocalLender(GlooTransport(node, layout, HostBlocks(slab), "127.0.0.1", token, options), slab))
    return made[0]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class OwnerProcess:
    """Another process that holds lenders; killed in some tests, then started anew."""

    def __init__(self) -> None:
        self._process = self._start()
        self._pid = 0
        self._killed = False

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
        """Of the one that holds the lenders."""
        if not self._pid:
            self._pid = int(self._pipes()[1].readline())
        return self._pid

    def ask(self, deed: str, **arguments: object) -> str:
        assert self.pid and not self._killed
        pipe_in, pipe_out = self._pipes()
        pipe_in.write(json.dumps({"deed": deed, **arguments}) + "\n")
        pipe_in.flush()
        return pipe_out.readline().strip()

    def kill(self) -> None:
        """Without a word; returns when the kernel has taken everything back. Twice is fine."""
        if self._killed:
            return
        os.kill(self.pid, signal.SIGKILL)
        while _exists(self.pid):
            time.sleep(0.001)
        self._killed = True

    def restart_if_dead(self) -> None:
        if self._killed:
            self._pid, self._killed = 0, False

    def close(self) -> None:
        pipe_in, pipe_out = self._pipes()
        pipe_in.close()
        if not self._pid:  # nobody asked for anything: it may still be importing
            self._process.kill()
        self._process.wait()
        pipe_out.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


class RemoteLender:
    """In the other process."""

    def __init__(
        self, owner: OwnerProcess, node: NodeId, layout: LayoutId, shape: SlabShape, transport: str = "shm"
    ) -> None:
        self._owner = owner
        self._node = node
        wanted = Binding(node, layout, shape, transport, "-").pack().hex()
        self._binding = Binding.unpack(bytes.fromhex(owner.ask("open", wanted=wanted, token=TOKEN.hex())))

    def binding(self) -> Binding:
        return self._binding

    def write(self, block: int, generation: int, seed: int, num_bytes: int | None = None) -> bytes:
        return bytes.fromhex(self._ask("write", block=block, generation=generation, seed=seed, num_bytes=num_bytes))

    def set_generation(self, block: int, generation: int) -> None:
        self._ask("set_generation", block=block, generation=generation)

    def lend(self, attempt: str, reader: str) -> None:
        self._ask("lend", attempt=attempt, reader=reader)

    def revoke(self, attempt: str, reader: str) -> None:
        self._ask("revoke", attempt=attempt, reader=reader)

    def while_read(self, deed: str, **arguments: object) -> None:
        self._ask("while_read", what=deed, **arguments)

    def close(self) -> None:
        self._ask("close")

    def die(self) -> None:
        self._owner.kill()

    def _ask(self, deed: str, **arguments: Any) -> str:
        return self._owner.ask(deed, node=self._node, **arguments)
