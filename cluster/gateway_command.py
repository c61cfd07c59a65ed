"""`penstock gateway`: joins a cluster, answers clients, until it is told to go."""

import argparse
import asyncio
import contextlib
import signal
import sys
from typing import Any, TypeVar

from cluster.console import OUT
from cluster.gateway_flags import checked_gateway
from cluster.gateway_service import GatewayService, ask_facts
from core.timers import Timers

EXIT_FAILED = 1
T = TypeVar("T")


async def run_gateway(args: argparse.Namespace) -> int:
    """The exit status. Raises ConfigError or Unavailable where it cannot begin."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    starting = asyncio.ensure_future(_start(args))
    if not await _first(starting, stop):
        return 130
    service = starting.result()
    _print_places(service)
    broken = asyncio.ensure_future(service.cluster.broken())
    if await _first(broken, stop):
        print(f"penstock: stopping: {broken.result()}", file=sys.stderr)
        await service.stop()
        return EXIT_FAILED
    OUT.print(f"penstock: stopping; open requests may take up to {Timers().drain_s:g} s (again to stop at once)")
    stop.clear()
    if not await _first(asyncio.ensure_future(service.stop(Timers().drain_s)), stop):
        await service.stop()
    return 0


async def _start(args: argparse.Namespace) -> GatewayService:
    config = checked_gateway(args.layers)
    service = GatewayService(config, await ask_facts(config))
    await service.start()
    return service


async def _first(work: "asyncio.Future[T]", stop: asyncio.Event) -> bool:
    """Whether the work was done before we were told to stop; else it is broken off."""
    stopped = asyncio.ensure_future(stop.wait())
    both: set[asyncio.Future[Any]] = {work, stopped}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if work.done():
        work.result()
        return True
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    return False


def _print_places(service: GatewayService) -> None:
    name, front = service.gateway.model.name, service.front
    OUT.print(f"penstock: {service.cluster.gateway} serves {name} on {service.address}; head: {service.config.head}")
    if front.http is not None:
        OUT.print(f"penstock: OpenAI: {front.http.url}/v1 (what there is: {front.http.url}/docs)")
    if front.metrics is not None:
        OUT.print(f"penstock: metrics without a key: {front.metrics.url}")
