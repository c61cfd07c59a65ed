"""The arm of mooncake-transfer-engine: host memory to host memory, in an environment of its own.

Between two processes of a host without RDMA its engine goes over TCP, whatever other protocol it is asked for.
"""

import importlib
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from typing import Any

from cluster.bench.kv_blocks import Bytes, Run
from cluster.bench.peer_memory import serve_peer

HOST, PROTOCOL = "127.0.0.1", "tcp"


def main() -> None:
    """Runs one side until its input ends."""
    importlib.import_module("mooncake.engine")
    serve_peer(_facts, Owner, Reader)


def _facts() -> dict[str, object]:
    package = packages_distributions()["mooncake"][0]
    return {package: version(package), "protocol": PROTOCOL}


class Engine:
    """One side. Owns: its engine, and the registration of its memory."""

    def __init__(self, blocks: Bytes) -> None:
        self.engine: Any = importlib.import_module("mooncake.engine").TransferEngine()
        self.size, self.base = blocks.shape[1], blocks.ctypes.data
        if self.engine.initialize(HOST, "P2PHANDSHAKE", PROTOCOL, ""):
            raise OSError("the engine does not start")
        if self.engine.register_memory(self.base, blocks.nbytes):
            raise OSError("memory cannot be registered")


class Owner(Engine):
    """Is read by the engine's own threads."""

    def told(self) -> dict[str, object]:
        """Where it listens, and where its memory begins."""
        return {"session": f"{HOST}:{self.engine.get_rpc_port()}", "base": self.base}

    def attend(self, on: bool) -> dict[str, object]:
        """Nothing: its threads block until they are asked."""
        return {}


class Reader(Engine):
    """Reads the owner's memory."""

    def bind(self, **told: Any) -> None:
        """Learn the owner."""
        self._session, self._theirs = told["session"], told["base"]

    def prepare(self, run: Run) -> Callable[[], None]:
        """A transfer of these blocks, those that lie together in one piece."""
        ours, theirs, sizes = list[int](), list[int](), list[int]()
        for source, target in zip(run.sources, run.targets, strict=True):
            to, at = self.base + target * self.size, self._theirs + source * self.size
            if ours and (ours[-1] + sizes[-1], theirs[-1] + sizes[-1]) == (to, at):
                sizes[-1] += self.size
                continue
            ours.append(to)
            theirs.append(at)
            sizes.append(self.size)

        def read() -> None:
            if self.engine.batch_transfer_sync_read(self._session, ours, theirs, sizes):
                raise OSError("the transfer failed")

        return read


if __name__ == "__main__":
    main()
