"""Nodes as processes of this machine, without Ray."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

from cluster.api.v1.post_pb2 import NodeStatus
from cluster.live.frames import frame_length, write_frame
from cluster.live.gpus import is_cuda, shown_alone
from cluster.live.launcher import LOOPBACK, Progress
from cluster.live.orders import NodeOrder, StartedNode
from core.errors import ConfigError, NodeLost

LOG = logging.getLogger("penstock.node")
MAX_LINE_BYTES = 1 << 16
VISIBLE = "CUDA_VISIBLE_DEVICES"
_LEVELS = {name.encode(): level for name, level in logging.getLevelNamesMapping().items()}
_LEVELS[b"Fatal"] = logging.CRITICAL
"""By a line's first word: what logging writes, and what faulthandler writes when the interpreter crashes."""


class LocalNode:
    """One node's process.

    Owns: the process, the pipe whose end tells it to go, and the task that copies its output into our log.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, lifeline: int) -> None:
        self._name = name
        self._process = process
        self._lifeline: int | None = lifeline
        self._output = asyncio.create_task(_copy_output(name, process))
        self._started: StartedNode | None = None

    @property
    def started(self) -> StartedNode:
        """Who it is."""
        assert self._started is not None, "the node has not said that it runs"
        return self._started

    @property
    def actor_id(self) -> str:
        """Empty: it is a process of its own."""
        return ""

    async def run(self, statuses: asyncio.StreamReader, progress: Progress) -> None:
        """Follows the node's start to its end. Raises ConfigError, and NodeLost where it went before it ran."""
        while True:
            status = await _next_status(statuses)
            if status is None:
                raise NodeLost(f"{self._name} did not start: {await self.exited()}")
            if status.HasField("failed"):
                await self.exited()
                raise _failure(self._name, status)
            if status.HasField("started"):
                self._started = StartedNode.from_wire(status.started)
                return
            progress(status.progress.phase, status.progress.share)

    async def exited(self) -> str:
        """Returns why, once the process is gone and all its output is in the log."""
        code = await self._process.wait()
        await self._output
        return f"killed by signal {-code}" if code < 0 else f"exited with status {code}"

    async def stop(self) -> None:
        """Kills it; fine if it is gone already."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self.exited()


class LocalLauncher:
    """Starts nodes as processes: the order, with the cluster token in it, goes through a pipe that they inherit."""

    def __init__(self, num_threads: int = 1, program: str = "cluster.live.node_process") -> None:
        self._program = program
        self._environment = os.environ | {
            "OMP_NUM_THREADS": str(num_threads),
            "MKL_NUM_THREADS": str(num_threads),
            "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "ERROR"),
        }

    async def open(self) -> str:
        """A process needs no preparation, and stays on this host."""
        return LOOPBACK

    async def close(self) -> None:
        """Nothing: each process is its node's to end."""

    async def start(self, order: NodeOrder, progress: Progress) -> LocalNode:
        """Starts a process and waits until the node in it runs. Raises ConfigError or NodeLost.

        A process on a GPU sees that one only, which is then its first.
        """
        environment = self._environment
        if is_cuda(order.settings.device):
            shown = shown_alone(order.settings.device, environment.get(VISIBLE))
            environment = environment | {VISIBLE: shown}
            order = replace(order, settings=replace(order.settings, device="cuda"))
        order_out, order_in = os.pipe()
        status_out, status_in = os.pipe()
        try:
            process = await self._spawn(order_out, status_in, environment)
        except BaseException:
            for fd in (order_in, status_out):
                os.close(fd)
            raise
        finally:
            for fd in (order_out, status_in):
                os.close(fd)
        node = LocalNode(order.name, process, order_in)
        try:
            async with _reading(status_out) as statuses:
                # An order is far smaller than a pipe's buffer: this does not block. A child that died says why below.
                with contextlib.suppress(BrokenPipeError):
                    write_frame(order_in, order.pack())
                await node.run(statuses, progress)
        except BaseException:
            await asyncio.shield(node.stop())
            raise
        return node

    async def _spawn(self, order_out: int, status_in: int, environment: dict[str, str]) -> asyncio.subprocess.Process:
        """In a session of its own, so that Ctrl-C reaches the head alone and nodes go when it says so."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._program, str(order_out), str(status_in)),
            pass_fds=(order_out, status_in),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LINE_BYTES,
            env=environment,
            start_new_session=True,
        )


@contextlib.asynccontextmanager
async def _reading(fd: int) -> AsyncIterator[asyncio.StreamReader]:
    """A pipe's reading end as a stream, closed at the end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0))
    try:
        yield reader
    finally:
        transport.close()


async def _next_status(statuses: asyncio.StreamReader) -> NodeStatus | None:
    try:
        length = frame_length(await statuses.readexactly(4))
        return NodeStatus.FromString(await statuses.readexactly(length))
    except asyncio.IncompleteReadError:
        return None


def _failure(name: str, status: NodeStatus) -> ConfigError | NodeLost:
    if status.failed.problems:
        return ConfigError([f"{name}: {problem}" for problem in status.failed.problems])
    return NodeLost(f"{name} did not start: {status.failed.why}")


async def _copy_output(name: str, process: asyncio.subprocess.Process) -> None:
    """Line by line into our log, with the node's name in front; a line that is too long comes in parts.

    Each at the level that it begins with; what begins with none, such as a traceback, belongs to the line before.
    """
    output = process.stdout
    assert output is not None
    rest, level = b"", logging.INFO
    while part := await output.read(MAX_LINE_BYTES):
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) >= MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            level = _LEVELS.get(line.partition(b" ")[0], level)
            LOG.log(level, "%s | %s", name, line.decode(errors="replace"))
    if rest:
        LOG.log(level, "%s | %s", name, rest.decode(errors="replace"))
