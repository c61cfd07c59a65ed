"""Starts a service on a thread of its own, and asks it things as a client from outside would."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cluster.access_flags import with_access
from cluster.api.v1 import inference_pb2 as pb
from cluster.cli import _parser
from cluster.flags import service_config
from cluster.gateway.client import Client
from cluster.gateway_flags import with_gateways
from cluster.http_flags import with_http, with_node_headers
from cluster.live.head import NodeState
from cluster.observe_flags import with_observe
from cluster.service import Service
from core.timers import Timers

GUARD_S = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer from its first token to its end."""

    token_ids: tuple[int, ...]
    text: str
    last: pb.GenerateResponse


class Running:
    """A started service. Owns: its loop and thread."""

    def __init__(self, *flags: str, timers: Timers | None = None) -> None:
        args = _parser().parse_args(["serve", "--launcher", "local", "--grpc-port", "0", *flags])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="service")
        self._thread.start()
        self.service: Service = self.call(_make(args, timers))
        self.call(self.service.start())
        self.address = self.service.address

    def call(self, coroutine: Any) -> Any:
        """Run something in the service's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(GUARD_S)

    def stop(self) -> None:
        """End it all."""
        self.call(self.service.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def nodes(self) -> dict[str, NodeState]:
        """The members by slot."""
        return {node.slot: node for node in self.call(_value(lambda: self.service.cluster.state().nodes))}

    def kill(self, slot: str) -> NodeState:
        """SIGKILL, and prove that it hit."""
        node = self.nodes()[slot]
        os.kill(node.pid, signal.SIGKILL)
        self.until(lambda: not _runs(node.pid))
        return node

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        end = time.monotonic() + GUARD_S
        while not condition():
            assert time.monotonic() < end, "it never came to that"
            time.sleep(0.02)

    def until_idle(self, num_nodes: int) -> None:
        """Wait until all nodes are there and hold nothing but free and cached blocks, as they say themselves."""
        started = time.monotonic()

        def idle() -> bool:
            nodes = self.nodes().values()
            blocks = [node.stats.blocks for node in nodes if node.stats is not None]
            fresh = time.monotonic() - started > 3 * self.service.config.live.timers.tick_s
            whole = all(b.free + b.cached == b.capacity for b in blocks)
            return fresh and len(blocks) == num_nodes and whole and self.call(_value(self.service.scheduler.is_idle))

        self.until(idle)

    def ask(self, request: pb.GenerateRequest, on_token: Callable[[int], None] = lambda number: None) -> Reply:
        """One request to its end; `on_token` is told how many tokens have come."""
        tokens, text, last = list[int](), "", pb.GenerateResponse()
        with Client(self.address) as client:
            for last in client.generate(request, GUARD_S):
                assert last.index == len(tokens) or not last.token_ids, "a gap or a repeat"
                tokens += last.token_ids
                text += last.text
                on_token(len(tokens))
        return Reply(tuple(tokens), text, last)


@contextmanager
def running(*flags: str, timers: Timers | None = None) -> Iterator[Running]:
    """A service for the length of a block; `timers` None: the usual ones."""
    service = Running(*flags, timers=timers)
    try:
        yield service
    finally:
        service.stop()


async def _make(args: Any, timers: Timers | None) -> Service:
    config = service_config(args)
    for part in (with_access, with_http, with_node_headers, with_observe, with_gateways):
        config = part(config, args)
    if timers is not None:
        config = replace(config, live=replace(config.live, timers=timers))
    return Service(config, lambda slot, phase, share: None)


async def _value(read: Callable[[], Any]) -> Any:
    return read()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
