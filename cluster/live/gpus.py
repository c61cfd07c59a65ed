"""Which node computes on which GPU, and what its share of it is. Decides from what was found; finds nothing itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.live.config import LiveConfig
from core.errors import ConfigError

GPU_SHARE_STEPS = 10_000
"""Ray counts resources in steps of 1/10,000."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that this process may use. `free_bytes`: of its memory, while nothing of ours runs there."""

    name: str
    free_bytes: int
    total_bytes: int


def is_cuda(device: str) -> bool:
    """Whether `cpu`, `cuda` or `cuda:1` names a GPU."""
    return device.partition(":")[0] == "cuda"


def device_index(device: str) -> int:
    """Which of a process's GPUs `cuda` or `cuda:1` means."""
    return int(device.partition(":")[2] or 0)


def nodes_per_gpu(num_nodes: int, num_gpus: int) -> int:
    """Nodes on the fullest of the GPUs, when they take turns."""
    return math.ceil(num_nodes / num_gpus)


def gpu_share(num_nodes: int, num_gpus: int) -> float:
    """The part of a GPU that each node asks Ray for, so that all find a place and none lies on two GPUs."""
    return GPU_SHARE_STEPS // nodes_per_gpu(num_nodes, num_gpus) / GPU_SHARE_STEPS


def node_devices(num_nodes: int, num_gpus: int) -> tuple[str, ...]:
    """The GPU of each node, in the order of the slots: they take turns, so a prefill and a decode node come apart."""
    return tuple(f"cuda:{number % num_gpus}" for number in range(num_nodes))


def shown_alone(device: str, visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES of a process that is to see one GPU only; `visible` is ours, None where it is not set.

    A process that saw them all could hold some hundred MiB of GPUs that it does not use, and every call that forgets
    to say which would go to the first one. Memory of a GPU that is not seen can still be mapped (CUDA 10.1 and later;
    NCCL relies on it).
    """
    index = device_index(device)
    return str(index) if visible is None else visible.split(",")[index].strip()


def placed(live: LiveConfig, gpus: Sequence[Gpu]) -> LiveConfig:
    """The cluster with a GPU for each node, where its device is one, by its number among those that we see.

    Whoever starts the node shows it only that one. Ray chooses itself.
    """
    if not is_cuda(live.node.device):
        return live
    if live.launcher == "ray":
        return replace(live, ray=replace(live.ray, on_gpus=True, num_gpus=len(gpus)))
    devices = node_devices(len(live.slots), len(gpus))
    slots = tuple(replace(slot, device=device) for slot, device in zip(live.slots, devices, strict=True))
    return replace(live, slots=slots)


def in_use(live: LiveConfig, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those that get a node; Ray may take any."""
    return tuple(gpus) if live.launcher == "ray" else tuple(gpus[: len(live.slots)])


def gpu_sentence(live: LiveConfig, gpus: Sequence[Gpu]) -> str:
    """For people, at the start; empty where no node is on a GPU of this machine."""
    if not gpus:
        return ""
    if live.launcher == "ray":
        share = gpu_share(len(live.slots), len(gpus))
        return f"{len(live.slots)} nodes on {len(gpus)} GPUs ({_names(gpus)}), {share:g} of one for each"
    where = ", ".join(f"{slot.name} on {slot.device}" for slot in live.slots)
    return f"{where} ({_names(in_use(live, gpus))})"


def _names(gpus: Sequence[Gpu]) -> str:
    names = [gpu.name for gpu in gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def check_remote(live: LiveConfig) -> None:
    """A Ray cluster that we join has GPUs that cannot be measured from here. Raises ConfigError."""
    node = live.node
    if node.num_kv_blocks is None and node.kv_cache_memory_bytes is None:
        found = "--gpu-memory-utilization cannot be taken of GPUs on other hosts (--ray-address with --device cuda)"
        raise ConfigError([f"{found}; give --kv-cache-memory-bytes or --num-gpu-blocks-override"])
