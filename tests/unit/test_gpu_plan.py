"""Which node computes on which GPU, how much of it it may take, and what is refused, without any GPU."""

import argparse
import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.bench.shapes import write_config
from cluster.flags import add_address_flags, add_cluster_flags, service_config
from cluster.gpu_probe import found_gpus, gpus_in
from cluster.kv_pool import CUDA_BYTES, needs_of, pool_of
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from cluster.live.gpus import (
    Gpu,
    check_remote,
    device_index,
    gpu_sentence,
    gpu_share,
    in_use,
    is_cuda,
    node_devices,
    nodes_per_gpu,
    placed,
    shown_alone,
)
from cluster.live.node_memory import on_device, take_memory
from cluster.service import Service
from core.errors import ConfigError
from core.ids import NodeId
from core.kv import KVLayout, SlabShape
from engine.hf_config import read_model_config
from kv_transfer.device import DeviceFailed
from kv_transfer.device_slab import DeviceSlab
from tests.transports.stand_in_device import StandInDevice

GIB = 1 << 30
CARD = Gpu("NVIDIA H200", 140 * GIB, 141 * GIB)
SHAPE = SlabShape(KVLayout(2, 2, 4, 4, "float32"), 32)


def live(nodes: int = 2, launcher: str = "local", **settings: object) -> LiveConfig:
    node = NodeSettings(Path("model"), device="cuda", **settings)  # type: ignore[arg-type]
    return LiveConfig(node, slots_of(nodes // 2, nodes - nodes // 2, 0, 512, 64), launcher)


def test_nodes_take_turns_on_the_gpus_and_share_where_there_are_few() -> None:
    assert node_devices(2, 1) == ("cuda:0", "cuda:0")
    assert node_devices(2, 8) == ("cuda:0", "cuda:1")
    assert node_devices(5, 2) == ("cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0")


@pytest.mark.parametrize(("nodes", "gpus", "each", "share"), [(2, 1, 2, 0.5), (2, 2, 1, 1.0), (3, 1, 3, 0.3333)])
def test_the_share_that_ray_is_asked_for_lets_all_find_a_place(nodes: int, gpus: int, each: int, share: float) -> None:
    assert nodes_per_gpu(nodes, gpus) == each
    assert gpu_share(nodes, gpus) == share
    for num_nodes in range(1, 40):
        for num_gpus in range(1, 9):
            most = nodes_per_gpu(num_nodes, num_gpus)
            assert most * num_gpus >= num_nodes
            assert 0 < most * gpu_share(num_nodes, num_gpus) <= 1


def test_processes_are_told_their_gpu_and_ray_is_told_how_many_there_are() -> None:
    processes = placed(live(3), [CARD, CARD])
    assert [slot.device for slot in processes.slots] == ["cuda:0", "cuda:1", "cuda:0"]
    assert not processes.ray.on_gpus
    actors = placed(live(3, "ray"), [CARD, CARD])
    assert [slot.device for slot in actors.slots] == ["", "", ""], "Ray shows each only its own"
    assert (actors.ray.on_gpus, actors.ray.num_gpus) == (True, 2)


def test_a_process_is_shown_its_gpu_out_of_those_that_we_see() -> None:
    assert [shown_alone(device, None) for device in ("cuda", "cuda:0", "cuda:3")] == ["0", "0", "3"]
    assert shown_alone("cuda:1", "4, 6,7") == "6"
    assert shown_alone("cuda:1", "GPU-8f3a,MIG-1c22") == "MIG-1c22"


def test_a_gpu_that_gets_no_node_is_not_looked_at() -> None:
    cards = [CARD, CARD, Gpu("busy", 1, GIB)]
    assert in_use(live(2), cards) == (CARD, CARD)
    assert in_use(live(4), cards) == tuple(cards)
    assert in_use(live(2, "ray"), cards) == tuple(cards), "Ray may take any"


def test_nodes_on_a_cpu_are_left_as_they_are() -> None:
    before = replace(live(), node=NodeSettings(Path("model")))
    assert placed(before, []) is before
    assert gpu_sentence(before, []) == ""


def test_a_device_is_read_with_and_without_its_number() -> None:
    assert [is_cuda(name) for name in ("cpu", "cuda", "cuda:3")] == [False, True, True]
    assert [device_index(name) for name in ("cuda", "cuda:3")] == [0, 3]


def test_the_start_says_where_each_node_computes() -> None:
    cards = [CARD, Gpu("NVIDIA L40S", GIB, GIB), Gpu("of no use", GIB, GIB)]
    assert gpu_sentence(placed(live(), cards), cards) == (
        "prefill-0 on cuda:0, decode-0 on cuda:1 (1 x NVIDIA H200, 1 x NVIDIA L40S)"
    )
    actors = gpu_sentence(placed(live(launcher="ray"), [CARD]), [CARD])
    assert actors == "2 nodes on 1 GPUs (1 x NVIDIA H200), 0.5 of one for each"


def test_gpus_of_a_ray_that_is_joined_cannot_be_measured_so_the_pool_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"--ray-address with --device cuda.*give --kv-cache-memory-bytes"):
        check_remote(live(launcher="ray"))
    check_remote(live(launcher="ray", num_kv_blocks=3))
    check_remote(live(launcher="ray", kv_cache_memory_bytes=GIB))


# ── how much of a GPU ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a Llama of 1 B parameters: 32 KiB of KV a token and 2.5 GB of weights in bfloat16."""
    made = tmp_path_factory.mktemp("model")
    write_config("llama-1b", "bfloat16", made)
    return made


def of_model(folder: Path, nodes: int, **settings: object) -> LiveConfig:
    made = live(nodes)
    return replace(made, node=replace(made.node, model=folder, dtype="bfloat16", **settings))  # type: ignore[arg-type]


def test_the_nodes_of_one_gpu_share_its_memory_and_those_of_others_do_not_count(folder: Path) -> None:
    wanted = {"memory_utilization": 0.4}
    alone = pool_of(of_model(folder, 2, **wanted), 40 * GIB, 1)
    both = pool_of(of_model(folder, 2, **wanted), 40 * GIB, 2)
    four = pool_of(of_model(folder, 4, **wanted), 40 * GIB, 2)
    needs = needs_of(read_model_config(folder), of_model(folder, 2))
    assert needs.process == CUDA_BYTES
    assert alone.num_bytes <= 16 * GIB - needs.total < alone.num_bytes + alone.layout.bytes_per_block
    assert both.num_bytes <= 8 * GIB - needs.total < both.num_bytes + both.layout.bytes_per_block
    assert four.num_bytes == both.num_bytes, "four nodes on two GPUs are two on each"


def test_pools_that_do_not_fit_on_one_gpu_together_are_refused(folder: Path) -> None:
    asked = {"kv_cache_memory_bytes": 30 * GIB}
    assert pool_of(of_model(folder, 2, **asked), 40 * GIB, 1).num_blocks
    with pytest.raises(ConfigError, match=r"of 2 nodes .* 40960 MiB of a GPU are free; lower --kv-cache-memory-bytes"):
        pool_of(of_model(folder, 2, **asked), 40 * GIB, 2)


# ── what is found ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_probe_prints_is_read_whatever_libraries_print_before_it() -> None:
    line = json.dumps({"why": "", "gpus": [["NVIDIA H200", 140 * GIB, 141 * GIB]]})
    assert gpus_in(f"a warning\n{line}\n") == (CARD,)


@pytest.mark.parametrize(
    ("printed", "says"),
    [
        (json.dumps({"why": "torch is built without CUDA", "gpus": []}), "--device cuda: torch is built without CUDA"),
        (json.dumps({"why": "", "gpus": []}), "--device cuda: no GPU; use --device cpu"),
        (json.dumps({"why": "", "gpus": [[1]]}), "printed"),
        ("Segmentation fault", "looking for GPUs printed 'Segmentation fault'"),
        ("", "printed ''"),
    ],
)
def test_a_machine_without_gpus_is_refused_with_what_was_found(printed: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gpus_in(printed)
    assert says in caught.value.problems[0]
    assert caught.value.problems[0].endswith("use --device cpu")


@pytest.mark.slow
def test_where_no_gpu_is_visible_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"--device cuda: torch \S+ .*; use --device cpu"):
        found_gpus()


# ── what is served ───────────────────────────────────────────────────────────────────────────────────────────────────


def service(*flags: str, cards: tuple[Gpu, ...] = (CARD,)) -> Service:
    parser = argparse.ArgumentParser()
    add_cluster_flags(parser)
    add_address_flags(parser)
    arguments = parser.parse_args(["--device", "cuda", "--launcher", "local", *flags])

    async def make() -> Service:
        return Service(service_config(arguments), lambda *_: None, lambda: cards)

    return asyncio.run(make())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_service_places_its_nodes_on_what_was_found(dtype: str) -> None:
    made = service("--dtype", dtype, "--prefill", "2", "--decode", "2", cards=(CARD, CARD))
    assert [slot.device for slot in made.config.live.slots] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert made.config.live.node.num_kv_blocks == made.pool.num_blocks


def test_a_service_takes_no_more_than_the_least_free_gpu_has() -> None:
    small = Gpu("a small card", 2 * GIB, 2 * GIB)
    flags = ("--kv-cache-memory-bytes", str(3 * GIB))
    assert service(*flags, cards=(CARD, CARD)).pool.num_blocks
    with pytest.raises(ConfigError, match="2048 MiB of a GPU are free"):
        service(*flags, cards=(CARD, small))


def test_a_gpu_is_used_as_far_as_users_of_gpus_expect_and_a_host_less() -> None:
    assert service().config.live.node.memory_utilization == 0.9
    assert service("--device", "cpu", cards=()).config.live.node.memory_utilization == 0.5
    assert service("--gpu-memory-utilization", "0.3").config.live.node.memory_utilization == 0.3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--quantization", "int8"), "--quantization int8 works on a CPU in float32 only"),
        (("--kv-transport", "shm"), "transport: shm needs KV in host memory, and these nodes keep it on their GPUs"),
        (("--launcher", "ray", "--ray-address", "10.0.0.1:6379"), "give --kv-cache-memory-bytes"),
    ],
)
def test_what_does_not_go_with_a_gpu_is_refused_before_any_process_starts(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        service(*flags)
    assert says in caught.value.message


# ── a node's memory ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_memory_on_a_device_is_named_for_peers_and_given_back() -> None:
    device = StandInDevice(1)
    taken = on_device(device, "cuda:1", SHAPE)
    assert isinstance(taken.slab, DeviceSlab)
    assert (taken.device, taken.gpu, len(device.ranges)) == ("cuda:1", "stand-in 1", 1)
    taken.slab.close()
    assert not device.ranges


def test_a_device_that_is_full_is_refused_with_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(num_bytes: int) -> int:
        raise DeviceFailed("out of memory")

    device = StandInDevice()
    monkeypatch.setattr(device, "allocate", full)
    with pytest.raises(ConfigError, match="0 MiB for KV cannot be taken on a stand-in: out of memory; lower --gpu-mem"):
        on_device(device, "cuda:0", SHAPE)


def test_a_node_that_is_told_of_a_gpu_that_its_process_has_not_says_what_is_missing() -> None:
    settings = NodeSettings(Path("model"), device="cuda:99")
    with pytest.raises(ConfigError, match="device 'cuda:99' cannot hold KV: "):
        take_memory(settings, SHAPE, NodeId("node@1"), lambda phase, share: None)
