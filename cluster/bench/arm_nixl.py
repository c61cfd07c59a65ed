"""The arm of NVIDIA's nixl: host memory to host memory through UCX, in an environment of its own.

As its users do it: both pools are registered, a list of all their blocks is prepared once for the peer, and a transfer
names indices into the lists. Its time counts from there to the last byte, which the reader spins for. The owner drives
the library as well while it is read, every 50 µs: without that a first read never ends, and to spin would take a core.
"""

import importlib
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from cluster.bench.kv_blocks import Bytes, Run
from cluster.bench.peer_memory import serve_peer

DRIVE_S = 50e-6


def main() -> None:
    """Runs one side until its input ends."""
    importlib.import_module("nixl._api")
    serve_peer(lambda: {"nixl": version("nixl"), "backend": "UCX"}, Owner, Reader)


class Agent:
    """One side. Owns: its agent, and the registration of its memory."""

    def __init__(self, name: str, blocks: Bytes) -> None:
        nixl: Any = importlib.import_module("nixl._api")
        self.agent = nixl.nixl_agent(name, nixl.nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        self.shape, self.base = blocks.shape, blocks.ctypes.data
        self.agent.register_memory([(self.base, blocks.nbytes, 0, "")], "DRAM")

    def pieces(self, base: int) -> list[tuple[int, int, int]]:
        """All blocks of a pool that begins at `base`."""
        num, size = self.shape
        return [(base + i * size, size, 0) for i in range(num)]


class Owner(Agent):
    """Owns: a thread that drives the library while a reader reads."""

    def __init__(self, blocks: Bytes) -> None:
        super().__init__("owner", blocks)
        self._is_read = threading.Event()
        threading.Thread(target=self._drive, daemon=True).start()

    def told(self) -> dict[str, object]:
        """Metadata of the agent, and where its memory begins."""
        return {"metadata": self.agent.get_agent_metadata().hex(), "base": self.base}

    def attend(self, on: bool) -> dict[str, object]:
        """A reader reads, or does no longer."""
        (self._is_read.set if on else self._is_read.clear)()
        return {}

    def _drive(self) -> None:
        while self._is_read.wait():
            self.agent.get_new_notifs()
            time.sleep(DRIVE_S)


class Reader(Agent):
    """Reads the owner's memory."""

    def __init__(self, blocks: Bytes) -> None:
        super().__init__("reader", blocks)
        self._lists: tuple[Any, Any] | None = None

    def bind(self, **told: Any) -> None:
        """Learn the owner, and prepare the lists of all blocks of both sides."""
        owner = self.agent.add_remote_agent(bytes.fromhex(told["metadata"]))
        ours = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", self.pieces(self.base), "DRAM")
        theirs = self.agent.prep_xfer_dlist(owner, self.pieces(told["base"]), "DRAM")
        self._lists = ours, theirs

    def prepare(self, run: Run) -> Callable[[], None]:
        """A transfer of these blocks, one descriptor each; the library joins those that lie together."""
        assert self._lists is not None
        ours, theirs = self._lists
        targets, sources = list(run.targets), list(run.sources)

        def read() -> None:
            handle = self.agent.make_prepped_xfer("READ", ours, targets, theirs, sources)
            state = self.agent.transfer(handle)
            while state == "PROC":
                state = self.agent.check_xfer_state(handle)
            if state != "DONE":
                raise OSError(f"the transfer ended as {state}")
            self.agent.release_xfer_handle(handle)

        return read


if __name__ == "__main__":
    main()
