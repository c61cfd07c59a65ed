"""What a process holds: descriptors, memory segments, threads, children. Linux only, read from /proc."""

import gc
import os
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

GRACE_S = 10.0
"""How long things may take to go on their own: an exiting child, a closing socket. Nothing waits once all is gone."""

SEGMENT_PREFIXES = ("penstock", "psm_")
SERVANTS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Children that the standard library starts once and keeps."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What this process holds now; `descriptors` counts them by what they point at, `children` by their commands.

    Without numbers: gRPC closes its poller with its last channel and opens another with the next, and a fixture may
    start its process again.
    """

    descriptors: Counter[str] = field(default_factory=Counter)
    segments: frozenset[str] = frozenset()
    threads: frozenset[threading.Thread] = frozenset()
    children: Counter[str] = field(default_factory=Counter)

    def beyond(self, before: "Holdings") -> list[str]:
        """What is there now and was not `before`, in words; empty when nothing was left."""
        found = [f"{num} × descriptor {to}" for to, num in (self.descriptors - before.descriptors).items()]
        found += [f"segment {name}" for name in sorted(self.segments - before.segments)]
        found += [f"thread {thread.name}" for thread in self.threads - before.threads]
        return found + [f"{num} × child {command}" for command, num in (self.children - before.children).items()]


def holdings() -> Holdings:
    """Looks at this process."""
    return Holdings(descriptors(), _segments(), _threads(), _children())


def left_since(before: Holdings) -> list[str]:
    """What was left, after the grace that it is given to go."""
    until = time.monotonic() + GRACE_S
    while left := holdings().beyond(before):
        if time.monotonic() > until:
            return left
        gc.collect()  # what only a cycle holds may go; a second each time, so not unless something is there
        time.sleep(0.05)
    return []


def warm() -> None:
    """Has libraries that are imported already make what they make once and keep: gRPC's pollers, torch's pool."""
    if "grpc" in sys.modules:
        _warm_grpc()
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.ones(64, 64) @ torch.ones(64, 64)


def _warm_grpc() -> None:
    import asyncio

    import grpc

    async def one_call() -> None:
        grpc.aio.init_grpc_aio()  # kept, as our own servers keep it; else it ends and begins with each module
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
        await server.stop(None)

    asyncio.run(one_call())


def descriptors() -> Counter[str]:
    """How many there are, by what they point at, without numbers."""
    found: Counter[str] = Counter()
    for name in set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}:  # pytest swaps those
        try:
            found[re.sub(r"\[\d+]", "", os.readlink(f"/proc/self/fd/{name}"))] += 1
        except FileNotFoundError:
            continue  # the descriptor of this very listing
    return found


def _segments() -> frozenset[str]:
    """Named ones in /dev/shm, and anonymous ones that are still mapped."""
    named = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if name.startswith(SEGMENT_PREFIXES)}
    maps = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    mapped = {f"{at[5]} (inode {at[4]})" for at in maps if len(at) == 6 and at[5].startswith("/memfd:")}
    return frozenset(named | mapped)


def _threads() -> frozenset[threading.Thread]:
    """Those that would keep the process alive, but for the timer that guards a test."""
    alive = (thread for thread in threading.enumerate() if not thread.daemon)
    return frozenset(thread for thread in alive if not thread.name.startswith("pytest_timeout"))


def _children() -> Counter[str]:
    me = os.getpid()
    commands = (_command(int(name)) for name in os.listdir("/proc") if name.isdigit() and _parent(int(name)) == me)
    return Counter(command for command in commands if not any(servant in command for servant in SERVANTS))


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
