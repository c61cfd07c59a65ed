"""Clusters whose nodes keep KV in device memory (a stand-in's): by what it moves, what is counted, the same tokens."""

import asyncio
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.live import transports
from cluster.live.build import Progress, build_node
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from cluster.live.gpus import Gpu, placed
from cluster.live.handshake import ClusterToken
from cluster.live.head import NodeState
from cluster.live.host import Host
from cluster.live.kv_ways import settled_ways
from cluster.live.local import LocalLauncher
from cluster.live.node_memory import NodeMemory, on_device
from core.ids import NodeId
from core.kv import SlabShape
from kv_transfer.links import Offer
from tests.live.posts import until
from tests.live.stand_in_node import FIRST_WITH_NCCL
from tests.live.test_host import order
from tests.live.test_model_cluster import Running, expected, running, settings
from tests.transports.stand_in_device import StandInDevice

__all__ = ["expected", "settings"]

pytestmark = pytest.mark.slow

PROGRAM = "tests.live.stand_in_node"
CARD = Gpu("a card", 1 << 30, 1 << 30)
WAYS_S = 20.0


def on_gpus(settings: NodeSettings, num_gpus: int, **changes: object) -> LiveConfig:
    """A prefill and a decode node, on as many GPUs."""
    node = replace(settings, device="cuda", **changes)  # type: ignore[arg-type]
    return placed(LiveConfig(node, slots_of(1, 1, 0, 32, 8)), [CARD] * num_gpus)


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is said of the GPUs of this machine, none of which is meant."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


async def answers(here: Running, expected: list[int], word: str = "r") -> None:
    for i in range(4):
        here.open(f"{word}{i}")
    for i in range(4):
        assert await here.tokens(f"{word}{i}") == expected


def moved(nodes: tuple[NodeState, ...]) -> int:
    assert sum(node.num_failed_fetches for node in nodes) == 0
    return sum(node.num_bytes for node in nodes)


def counted(nodes: tuple[NodeState, ...]) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in nodes:
        found.update(dict(node.transfers.counts))
    return found


def ways(nodes: tuple[NodeState, ...]) -> set[str]:
    return {link.transport for node in nodes for link in node.transfers.links}


def test_nodes_that_share_a_gpu_hand_over_within_its_memory(settings: NodeSettings, expected: list[int]) -> None:
    async def walk() -> None:
        live = on_gpus(settings, 1)
        async with running(live.node, live.slots, by=LocalLauncher(program=PROGRAM)) as here:
            (sentence,) = await settled_ways(lambda: here.cluster.state().nodes, WAYS_S)
            assert sentence.startswith("KV moves by cuda_ipc (automatic: KV on GPUs of one host"), sentence
            await answers(here, expected)
            await until(lambda: moved(here.cluster.state().nodes) > 0)
            nodes = here.cluster.state().nodes
            assert (ways(nodes), counted(nodes)) == ({"cuda_ipc"}, Counter())

    asyncio.run(walk())


def test_gpus_that_cannot_reach_each_other_go_through_the_host_which_is_said_and_counted(
    settings: NodeSettings, expected: list[int]
) -> None:
    async def walk() -> None:
        live = on_gpus(settings, 2)
        assert [slot.device for slot in live.slots] == ["cuda:0", "cuda:1"]
        async with running(live.node, live.slots, by=LocalLauncher(program=PROGRAM)) as here:
            sentences = await settled_ways(lambda: here.cluster.state().nodes, WAYS_S)
            assert len(sentences) == 2, "each names the card that it could not map"
            for sentence in sentences:
                assert sentence.startswith("KV moves by gloo (instead of cuda_ipc: "), sentence
                assert "no peer access" in sentence
                assert "KV of GPUs is staged through host memory" in sentence
            await answers(here, expected)
            await until(lambda: moved(here.cluster.state().nodes) > 0)
            assert ways(here.cluster.state().nodes) == {"gloo"}
            await until(lambda: counted(here.cluster.state().nodes) == Counter(fallback=2, staged=2))

    asyncio.run(walk())


@pytest.mark.parametrize("asked", ["auto", "nccl"])
def test_gpus_that_have_nccl_use_it_between_each_other(settings: NodeSettings, expected: list[int], asked: str) -> None:
    async def walk() -> None:
        live = on_gpus(settings, 2, transport=asked)
        slots = tuple(replace(slot, device=f"cuda:{FIRST_WITH_NCCL + i}") for i, slot in enumerate(live.slots))
        async with running(live.node, slots, by=LocalLauncher(program=PROGRAM)) as here:
            await answers(here, expected)
            await until(lambda: moved(here.cluster.state().nodes) > 0)
            nodes = here.cluster.state().nodes
            assert ways(nodes) == {"nccl"}
            wanted = Counter(fallback=2) if asked == "auto" else Counter()
            await until(lambda: counted(here.cluster.state().nodes) == wanted)

    asyncio.run(walk())


def test_the_host_path_can_be_asked_for_by_name(settings: NodeSettings, expected: list[int]) -> None:
    async def walk() -> None:
        live = on_gpus(settings, 1, transport="gloo")
        async with running(live.node, live.slots, by=LocalLauncher(program=PROGRAM)) as here:
            (sentence,) = await settled_ways(lambda: here.cluster.state().nodes, WAYS_S)
            assert sentence.startswith("KV moves by gloo (as asked); KV of GPUs is staged"), sentence
            await answers(here, expected)
            await until(lambda: moved(here.cluster.state().nodes) > 0)
            await until(lambda: counted(here.cluster.state().nodes) == Counter(staged=2))

    asyncio.run(walk())


def test_a_stopped_host_gives_its_devices_memory_back(settings: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandInDevice()
    monkeypatch.setitem(transports.WHY_NOT, "nccl", lambda: "the stand-in has none")

    def take(settings: NodeSettings, shape: SlabShape, node: NodeId, progress: Progress) -> NodeMemory:
        return on_device(device, "cpu", shape)

    asked = order("127.0.0.1:1", ClusterToken.mint())
    asked = replace(asked, settings=replace(settings, device="cuda"))
    host = Host(build_node(asked, lambda phase, share: None, take), asked)
    told = Offer.unpack(host.start().binding)
    assert (told.place.gpu, [binding.transport for binding in told.bindings]) == ("stand-in 0", ["cuda_ipc", "gloo"])
    assert (len(device.ranges), device.num_streams) == (1, 1)
    host.stop()
    assert (device.ranges, device.num_streams) == ({}, 0)


def test_a_killed_nodes_device_memory_is_let_go_of_and_its_successor_is_read_as_it_was(
    settings: NodeSettings, expected: list[int]
) -> None:
    async def walk() -> None:
        live = on_gpus(settings, 1)
        async with running(live.node, live.slots, by=LocalLauncher(program=PROGRAM)) as here:
            await answers(here, expected)
            first = here.pids()["prefill-0"]
            os.kill(first, signal.SIGKILL)
            await until(lambda: here.pids().get("prefill-0", first) != first)
            await answers(here, expected, "again")
            await until(lambda: all(len(node.transfers.links) == 1 for node in here.cluster.state().nodes))
            assert ways(here.cluster.state().nodes) == {"cuda_ipc"}
            decode = here.pids()["decode-0"]
            mapped = Path(f"/proc/{decode}/maps").read_text()
            assert mapped.count("penstock-stand-in") == 2, "its own slab and the successor's, not the dead one's"

    asyncio.run(walk())
