"""Lenders and readers over the stand-in device: of `cuda_ipc`, and of `gloo` through host memory."""

from core.ids import LayoutId, NodeId
from core.kv import SlabShape
from kv_transfer.cuda_ipc import CudaIpcTransport, IpcOptions
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.faults import Faults, NoFaults
from kv_transfer.gloo import GlooTransport
from kv_transfer.pair_transport import PairOptions
from kv_transfer.slab import SlabView
from kv_transfer.staging import StagedBlocks
from kv_transfer.transport import Transport
from tests.transports.lenders import TOKEN, LocalLender, content
from tests.transports.stand_in_device import StandInDevice


class StandInSlab(DeviceSlab):
    """With the host's view of its bytes, as a slab of host memory has it."""

    def __init__(self, shape: SlabShape) -> None:
        self.stand_in = StandInDevice()
        super().__init__(self.stand_in, shape)

    @property
    def view(self) -> SlabView:
        return SlabView.over(self.stand_in.ranges[self.at.pointer].memory, self.shape)

    def block(self, block: int) -> memoryview:
        pointer, size = self.at.block_pointer(block), self.shape.layout.bytes_per_block
        return self.stand_in.at(pointer, size).data


class DeviceLender(LocalLender):
    """Seals on the device."""

    def __init__(self, transport: Transport, slab: StandInSlab) -> None:
        self.device_slab = slab
        super().__init__(transport, slab)  # type: ignore[arg-type]

    def write(self, block: int, generation: int, seed: int, num_bytes: int | None = None) -> bytes:
        size = self.slab.shape.layout.bytes_per_block if num_bytes is None else num_bytes
        self.device_slab.set_generation(block, generation)
        self.device_slab.write_block(block, content(seed, size))
        return self.device_slab.digests((block,))[0]


def ipc_lender(node: NodeId, layout: LayoutId, shape: SlabShape, token: bytes = TOKEN) -> DeviceLender:
    slab = StandInSlab(shape)
    return DeviceLender(CudaIpcTransport(node, layout, slab, token, IpcOptions(faults=NoFaults())), slab)


def ipc_reader(
    node: NodeId, layout: LayoutId, shape: SlabShape, faults: Faults | None
) -> tuple[CudaIpcTransport, StandInSlab]:
    slab = StandInSlab(shape)
    return CudaIpcTransport(node, layout, slab, TOKEN, IpcOptions(progress_s=5, faults=faults)), slab


def staged_lender(node: NodeId, layout: LayoutId, shape: SlabShape) -> LocalLender:
    slab = StandInSlab(shape)
    made: list[DeviceLender] = []
    options = PairOptions(NoFaults(), meanwhile=lambda: made[0].meanwhile())
    transport = GlooTransport(node, layout, StagedBlocks(slab), "127.0.0.1", TOKEN, options)
    made.append(DeviceLender(transport, slab))
    return made[0]


def staged_reader(
    node: NodeId, layout: LayoutId, shape: SlabShape, faults: Faults | None
) -> tuple[GlooTransport, StandInSlab]:
    slab = StandInSlab(shape)
    return GlooTransport(node, layout, StagedBlocks(slab), "127.0.0.1", TOKEN, PairOptions(faults)), slab
