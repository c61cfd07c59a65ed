"""A node's KV memory where its model computes: on the host, or on a GPU in an allocation that can be exported."""

from collections.abc import Callable
from dataclasses import dataclass

from cluster.live.config import NodeSettings
from cluster.live.gpus import device_index, is_cuda
from core.errors import ConfigError
from core.ids import NodeId
from core.kv import SlabShape
from kv_transfer.device import Device, DeviceFailed
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.packing import Digests
from kv_transfer.slab import Slab

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """The slab, the device on which the executor computes over it, and the name of the GPU for peers (none: empty)."""

    slab: Slab | DeviceSlab
    device: str
    gpu: str = ""

    @property
    def digests(self) -> Digests | None:
        """What its blocks are sealed with, where that is computed on the device."""
        return self.slab.digests if isinstance(self.slab, DeviceSlab) else None


TakeMemory = Callable[[NodeSettings, SlabShape, NodeId, Progress], NodeMemory]


def take_memory(settings: NodeSettings, shape: SlabShape, node: NodeId, progress: Progress) -> NodeMemory:
    """All of it, touched or zeroed. Raises ConfigError where the device or the memory is not there."""
    if is_cuda(settings.device):
        return on_device(open_cuda(settings.device), settings.device, shape)
    slab = Slab.anonymous(shape, node)
    try:
        slab.populate(lambda done, total: progress("taking KV memory", done / total))
    except BaseException:
        slab.close()
        raise
    return NodeMemory(slab, settings.device)


def open_cuda(device: str) -> Device:
    """The GPU. Raises ConfigError with what is missing."""
    from kv_transfer.cuda_device import CudaDevice

    try:
        return CudaDevice(device_index(device))
    except DeviceFailed as error:
        raise ConfigError([f"device {device!r} cannot hold KV: {error}"]) from error


def on_device(device: Device, name: str, shape: SlabShape) -> NodeMemory:
    """A slab in a device's memory. Raises ConfigError where there is not enough of it."""
    try:
        return NodeMemory(DeviceSlab(device, shape), name, device.card)
    except DeviceFailed as error:
        asked = f"{shape.total_bytes >> 20} MiB for KV cannot be taken on {device.description}: {error}"
        raise ConfigError([f"{asked}; lower --gpu-memory-utilization or --kv-cache-memory-bytes"]) from error
