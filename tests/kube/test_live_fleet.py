"""The live cluster as a fleet: what a round sees of it, and what it does to it."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.kube.fleet import ClusterView, GroupChange, Phase, Pod, WorkerGroup
from cluster.kube.live_fleet import LiveFleet
from cluster.kubernetes import FleetScaler, Pace
from cluster.live.config import NodeSlot
from cluster.live.head import NodeState
from cluster.service import Service
from core.mix import mix_of
from tests.service.running import Running, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
GUARD_S = 90.0
HOST = "127.0.0.1"


class Held:
    """Always the leader."""

    def holds(self) -> bool:
        return True

    def release(self) -> None:
        """Nothing."""


class Desk:
    """A RayCluster of one decode group whose pods are as many as its replicas, all on this machine's one address."""

    def __init__(self, wanted: int) -> None:
        self.replicas, self.wanted = 1, wanted
        self.written: list[tuple[GroupChange, ...]] = []
        self.notes: list[str] = []

    def read(self) -> ClusterView:
        pods = tuple(Pod(f"pod-{number}", "decode", HOST) for number in range(self.replicas))
        return ClusterView((WorkerGroup("decode", self.replicas, 1, 3),), pods, self.wanted)

    def write(self, changes: tuple[GroupChange, ...]) -> None:
        self.written.append(changes)
        self.replicas = changes[0].replicas

    def note(self, reason: str, message: str, is_warning: bool) -> None:
        self.notes.append(f"{reason}: {message}")


def slot_of(group: str, number: int) -> NodeSlot:
    return NodeSlot(f"{group}-{number}", mix_of("decode", 256, 8))


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a node's process at the longest: its imports take long where the machine is busy."""
    async with asyncio.timeout(GUARD_S):
        while not condition():
            await asyncio.sleep(0.02)


def phases(fleet: LiveFleet) -> dict[str, Phase]:
    return {node.slot: node.phase for node in fleet.nodes()}


def walk(server: Running, steps: Callable[[Service, LiveFleet], Coroutine[Any, Any, None]]) -> None:
    """Steps in the loop of a running service."""

    async def go() -> None:
        service = server.service
        fleet = LiveFleet(service.cluster, service.operator, slot_of)
        try:
            await steps(service, fleet)
        finally:
            await fleet.close()

    asyncio.run_coroutine_threadsafe(go(), server._loop).result(4 * GUARD_S)


def test_the_scaler_adds_nodes_to_a_live_cluster_and_takes_them_away_empty() -> None:
    desk = Desk(wanted=2)

    async def steps(service: Service, fleet: LiveFleet) -> None:
        scaler = FleetScaler(desk, Held(), fleet, Pace(interval_s=0.1, write_every_s=0.0))
        service.operator.count = scaler.counters.named
        rounds = asyncio.create_task(scaler.run())
        try:
            await until(lambda: phases(fleet).get("decode-1") is Phase.SERVING)
            assert desk.replicas == 2
            desk.wanted = 1
            await until(lambda: desk.replicas == 1 and len(phases(fleet)) == 2)
        finally:
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)
        assert dict(service.operator.shown().counters)["kube_writes"] == 2

    asked = pb.GenerateRequest(text="Once", sampling=pb.SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    with running("--prefill", "1", "--decode", "1") as server:
        before = server.ask(asked).token_ids
        walk(server, steps)
        assert server.ask(asked).token_ids == before
        assert set(server.nodes()) in ({"prefill-0", "decode-0"}, {"prefill-0", "decode-1"})
    assert any(note.startswith("Draining: decode-") for note in desk.notes)
    assert desk.written[-1][0].to_delete, "a pod was named"


async def renewed(service: Service, fleet: LiveFleet, name: str) -> None:
    """A node that is empty is renewed: the slot waits, and the node that follows when its pod has ended is open."""
    before = service_nodes(service)[name]
    fleet.renew(name)
    await asyncio.sleep(0.2)
    fleet.keep(name)
    await until(lambda: service_nodes(service)[name].mix.role == "decode")
    assert phases(fleet)[name] is Phase.SERVING, "taken back"
    fleet.drain(name)
    await until(lambda: phases(fleet)[name] is Phase.EMPTY)
    fleet.renew(name)
    assert phases(fleet)[name] is Phase.STARTING
    await asyncio.sleep(0.2)
    assert service_nodes(service)[name].mix.role == "closed", "nothing comes to a node whose pod ends"
    os.kill(before.pid, signal.SIGKILL)
    await until(lambda: phases(fleet)[name] is Phase.SERVING)
    assert service_nodes(service)[name].node != before.node
    assert service_nodes(service)[name].mix.role == "decode"


def service_nodes(service: Service) -> dict[str, NodeState]:
    return {node.slot: node for node in service.cluster.state().nodes}


def test_drains_are_called_off_and_slots_that_only_start_are_given_up() -> None:
    async def steps(service: Service, fleet: LiveFleet) -> None:
        name = fleet.add("decode")
        assert phases(fleet)[name] is Phase.STARTING
        fleet.drain(name)
        await until(lambda: name not in {slot.name for slot in service.cluster.state().slots})
        assert phases(fleet)[name] is Phase.EMPTY
        fleet.keep(name)
        await until(lambda: phases(fleet)[name] is Phase.SERVING)
        fleet.drain(name)
        await until(lambda: phases(fleet)[name] is Phase.EMPTY)
        fleet.keep(name)
        await until(lambda: phases(fleet)[name] is Phase.SERVING)
        fleet.drain(name)
        await until(lambda: phases(fleet)[name] is Phase.EMPTY)
        node = next(each for each in fleet.nodes() if each.slot == name)
        assert (node.group, node.host, node.load) == ("decode", HOST, 0)
        await renewed(service, fleet, name)
        await service.operator.drain(name)
        fleet.drain(name)
        await until(lambda: phases(fleet)[name] is Phase.EMPTY)
        fleet.keep(name)
        await until(lambda: service_nodes(service)[name].mix.role == "closed")
        await asyncio.sleep(0.3)
        assert service_nodes(service)[name].mix.role == "closed", "a human has drained it"
        fleet.drain(name)
        await until(lambda: phases(fleet)[name] is Phase.EMPTY)
        fleet.remove(name)
        await until(lambda: name not in phases(fleet))
        assert fleet.wish() is None

    with running("--prefill", "1", "--decode", "1") as server:
        walk(server, steps)
        assert set(server.nodes()) == {"prefill-0", "decode-0"}
