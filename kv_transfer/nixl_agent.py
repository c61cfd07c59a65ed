"""NIXL behind the few calls that the transport needs. The package is imported only when an agent is made."""

import importlib
import logging
import os
import threading
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

DRAM, VRAM = "DRAM", "VRAM"


class AgentFailed(Exception):
    """NIXL or what it runs on refused or lost something; the transport translates it."""


def can_run() -> str | None:
    """Why this process cannot use NIXL; None where it can."""
    try:
        importlib.import_module("nixl._api")
    except (ImportError, OSError) as error:
        return f"nixl is not installed, or not for this machine ({error}); install penstock[nixl]"
    return None


def _try(what: str, call: Any, *arguments: object) -> Any:
    try:
        return call(*arguments)
    except Exception as error:  # NIXL's bindings raise a class of their own for each status
        raise AgentFailed(f"NIXL could not {what}: {type(error).__name__}: {error}") from error


class Agent:
    """One node's NIXL agent.

    Owns: NIXL's own agent, and how often each other agent was added, which NIXL knows only once by its name; what is
    registered is given back by whoever registered it.
    Invariant: nothing runs in the background. What it moves, moves while somebody asks whether it is done, or in
    `progress`: NIXL's own progress thread would keep a core busy for good.
    """

    def __init__(self, name: str, backend: str) -> None:
        if why := can_run():
            raise AgentFailed(why)
        if "NIXL_LOG_LEVEL" not in os.environ:
            logging.getLogger("nixl").setLevel(logging.WARNING)  # its own are for its standard output
        api = importlib.import_module("nixl._api")
        strict = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        config = api.nixl_agent_config(enable_prog_thread=False, backends=[backend], sync_mode=strict)
        self._lock = threading.Lock()
        self._num_added: Counter[str] = Counter()
        self._agent = _try("make an agent", api.nixl_agent, name, config)
        if backend not in self._agent.backends:
            raise AgentFailed(f"this NIXL has no backend {backend}; it has {', '.join(self._agent.get_plugin_list())}")

    def _try(self, what: str, call: str, *arguments: object) -> Any:
        if self._agent is None:
            raise AgentFailed(f"this agent is closed and cannot {what}")
        return _try(what, getattr(self._agent, call), *arguments)

    def register(self, address: int, num_bytes: int, memory: str, device: int) -> object:
        """Let others read this memory once they have our metadata; returns what `deregister` takes."""
        return self._try("register memory", "register_memory", [(address, num_bytes, device, "")], memory)

    def deregister(self, registered: object) -> None:
        """Take memory back."""
        self._try("give memory back", "deregister_memory", registered)

    def metadata(self) -> bytes:
        """What others need to reach what is registered now."""
        return bytes(self._try("describe itself", "get_agent_metadata"))

    def add(self, metadata: bytes) -> str:
        """Make another agent reachable; returns its name."""
        with self._lock:
            name = self._try("take another agent in", "add_remote_agent", metadata)
            name = name.decode() if isinstance(name, bytes) else str(name)
            self._num_added[name] += 1
            return str(name)

    def remove(self, name: str) -> None:
        """Undo one `add`; with the last, nothing can be asked of it any more.

        NIXL 1.5 over UCX then keeps one idle socket for as long as this agent lives.
        """
        with self._lock:
            self._num_added[name] -= 1
            if not self._num_added[name]:
                del self._num_added[name]
                self._try("let another agent go", "remove_remote_agent", name)

    def progress(self) -> None:
        """Serve what others want of us now, where the hardware does not serve it by itself."""
        self._try("make progress", "get_new_notifs")

    def close(self) -> None:
        """End it, with its connections, threads and descriptors; nothing else may be called afterwards."""
        self._agent = None

    def read(self, name: str, local: "Ranges", remote: "Ranges") -> "Transfer":
        """Start to read: range by range, from the other agent into ours."""
        ours = self._try("name our memory", "get_xfer_descs", local.table, local.memory)
        theirs = self._try("name its memory", "get_xfer_descs", remote.table, remote.memory)
        handle = self._try("prepare a read", "initialize_xfer", "READ", ours, theirs, name)
        return Transfer(self._agent, handle)


class Ranges:
    """Ranges of one kind of memory. Shapes: `table` [ranges, 3] u64: address, bytes, device."""

    def __init__(self, memory: str, device: int, addresses: npt.ArrayLike, sizes: npt.ArrayLike) -> None:
        self.memory = memory
        at = np.asarray(addresses, np.uint64)
        self.table = np.stack((at, np.asarray(sizes, np.uint64), np.full_like(at, device)), axis=1)


class Transfer:
    """One read that was started.

    Owns: NIXL's handle, which `release` gives back.
    """

    def __init__(self, agent: Any, handle: Any) -> None:
        self._agent = agent
        self._handle = handle
        self._state = self._ask(agent.transfer)

    def is_done(self) -> bool:
        """Whether all bytes have arrived; asking moves them. Raises AgentFailed."""
        if self._state == "PROC":
            self._state = self._ask(self._agent.check_xfer_state)
        if self._state == "ERR":
            raise AgentFailed("NIXL's read failed")
        return bool(self._state == "DONE")

    def _ask(self, call: Any) -> str:
        try:
            return str(_try("read", call, self._handle))
        except AgentFailed:
            self._state = "ERR"
            raise

    def release(self) -> bool:
        """Give the handle back, cancelling a read that still runs; whether nothing runs any more."""
        try:
            self._agent.release_xfer_handle(self._handle)
        except Exception:  # it cannot be cancelled, and runs on
            return False
        return True
