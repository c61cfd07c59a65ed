"""CUDA behind the seam of `device`, through CuPy. Imported only where a GPU is asked for.

Allocations are `cudaMalloc`'s own: memory out of a caching allocator (torch's, CuPy's) shares its allocation with
strangers, and a handle exports the whole of it.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kv_transfer.device import Columns, DeviceFailed, Found, SlabAt
from kv_transfer.gather import CUDA_SOURCE, KERNELS, NUM_THREADS, Tiling

if TYPE_CHECKING:
    from torch import Tensor

PROGRAMS_PER_SM = 32
"""Thread blocks of a copy per multiprocessor, at most. On an H200, 128 blocks of 2 MiB: 1,912 GB/s with 32, one tile
each, and 1,739 with 4 of half the size that take turns; a copy by the driver 1,992. Over NVLink fewer would do."""

SUCCESS, NOT_READY = 0, 600
"""`cudaSuccess` and `cudaErrorNotReady`."""


def can_run() -> str | None:
    """Why this process has no CUDA device to move KV with; None where it has."""
    try:
        runtime = importlib.import_module("cupy").cuda.runtime
    except ImportError as error:
        return f"cupy is not installed, or not for this CUDA ({error}); install penstock[cuda] or penstock[cuda12]"
    try:
        return None if runtime.getDeviceCount() else "no CUDA device"
    except runtime.CUDARuntimeError as error:
        return f"no CUDA device ({error})"


class CudaDevice:
    """One GPU.

    Owns: the compiled kernels; not the memory, which whoever allocates or maps gives back.
    """

    def __init__(self, index: int = 0) -> None:
        if why := can_run():
            raise DeviceFailed(why)
        self._cupy = importlib.import_module("cupy")
        self.runtime = self._cupy.cuda.runtime
        self.index = index
        with self.here():
            properties = self.runtime.getDeviceProperties(index)
            module = self._cupy.RawModule(code=CUDA_SOURCE, options=("-std=c++14",))
            self._kernels = {name: module.get_function(name) for name in KERNELS}
        self._name = properties["name"].decode()
        self.max_programs = PROGRAMS_PER_SM * int(properties["multiProcessorCount"])

    @property
    def description(self) -> str:
        """Card and number."""
        return f"cuda:{self.index} ({self._name})"

    @property
    def card(self) -> str:
        """Its place on the PCI bus: indices depend on CUDA_VISIBLE_DEVICES."""
        with self.here():
            return str(self.runtime.deviceGetPCIBusId(self.index))

    @contextmanager
    def here(self) -> Iterator[None]:
        """This device is the current one of this thread within; errors of CUDA come out as DeviceFailed."""
        cuda = self._cupy.cuda
        try:
            with cuda.Device(self.index):
                yield
        except (RuntimeError, cuda.compiler.CompileException) as error:  # CUDA's own are RuntimeErrors
            raise DeviceFailed(f"cuda:{self.index}: {error}") from error

    def allocate(self, num_bytes: int) -> int:
        """`cudaMalloc`, zeroed."""
        with self.here():
            pointer = int(self.runtime.malloc(num_bytes))
            self.runtime.memset(pointer, 0, num_bytes)
            self.runtime.deviceSynchronize()  # once, at start: a memset is not done when it returns
            return pointer

    def free(self, pointer: int) -> None:
        """`cudaFree`, which waits for the device."""
        with self.here():
            self.runtime.free(pointer)

    def export(self, pointer: int) -> bytes:
        """CUDA's 64 bytes for this allocation."""
        with self.here():
            return bytes(self.runtime.ipcGetMemHandle(pointer))

    def map(self, handle: bytes, num_bytes: int) -> int:
        """Map another process's allocation; of another GPU too, where the two can reach each other."""
        with self.here():
            return int(self.runtime.ipcOpenMemHandle(handle))

    def unmap(self, pointer: int) -> None:
        """Let go of a mapping."""
        with self.here():
            self.runtime.ipcCloseMemHandle(pointer)

    def tensor(self, pointer: int, num_bytes: int) -> "Tensor":
        """An allocation as torch sees it, without a copy."""
        torch = importlib.import_module("torch")
        made: Tensor = torch.as_tensor(_Exposed(pointer, num_bytes), device=f"cuda:{self.index}")
        if made.data_ptr() != pointer:
            raise DeviceFailed(f"torch copied the slab of {num_bytes} bytes instead of viewing it")
        return made

    def stream(self) -> "CudaStream":
        """A non-blocking stream."""
        with self.here():
            return CudaStream(self, self._cupy, self._kernels)


class _Exposed:
    """Device bytes by the protocol that torch and CuPy share."""

    def __init__(self, pointer: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


class CudaStream:
    """A non-blocking stream with buffers for one copy at a time.

    Owns: the stream, its event, and two buffers of words (pinned on the host, and on the device), which only grow.
    Invariant: of the words, three columns go to the device and four columns of results come back; one transfer each.
    """

    def __init__(self, device: CudaDevice, cupy: Any, kernels: dict[str, Callable[..., None]]) -> None:
        self._device = device
        self._cupy = cupy
        self._kernels = kernels
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._event = cupy.cuda.Event(disable_timing=True)
        self._num_blocks = 0
        self._room = 0
        self._make_room(1)

    def _make_room(self, num_blocks: int) -> None:
        """Buffers for so many blocks: the seven columns, each `room` words long."""
        if num_blocks <= self._room:
            return
        self._room = 1 << (num_blocks - 1).bit_length()
        num_bytes = 7 * 8 * self._room
        self._pinned = self._cupy.cuda.alloc_pinned_memory(num_bytes)
        self._host = np.frombuffer(self._pinned, np.uint64, 7 * self._room).reshape(7, self._room)
        self._memory = self._cupy.cuda.Memory(num_bytes)

    def _column(self, index: int) -> int:
        return int(self._memory.ptr) + index * 8 * self._room

    def begin(self, columns: Columns) -> None:
        """One upload of the three columns; results start as 0."""
        self._num_blocks = len(columns.source_blocks)
        with self._device.here():
            self._make_room(self._num_blocks)
            for index, column in enumerate((columns.source_blocks, columns.target_blocks, columns.generations)):
                self._host[index, : self._num_blocks] = column.view(np.uint64)
            runtime, stream = self._cupy.cuda.runtime, self._stream.ptr
            runtime.memcpyAsync(
                self._column(0), self._host.ctypes.data, 3 * 8 * self._room, runtime.memcpyHostToDevice, stream
            )
            runtime.memsetAsync(self._column(3), 0, 4 * 8 * self._room, stream)

    def _launch(self, kernel: str, num_programs: int, *arguments: object) -> None:
        with self._device.here(), self._stream:
            self._kernels[kernel]((num_programs,), (NUM_THREADS,), arguments)

    def _per_block(self, kernel: str, slab: SlabAt, blocks: int, column: int) -> None:
        if self._num_blocks:
            words = (np.uint64(slab.pointer), np.uint64(self._column(blocks)), np.uint64(self._column(column)))
            self._launch(kernel, -(-self._num_blocks // NUM_THREADS), *words, np.int64(self._num_blocks))

    def write_generations(self, own: SlabAt) -> None:
        """One launch."""
        self._per_block("write_generations", own, 1, 2)

    def read_before(self, source: SlabAt) -> None:
        """One launch."""
        self._per_block("read_generations", source, 0, 3)

    def read_after(self, source: SlabAt) -> None:
        """One launch."""
        self._per_block("read_generations", source, 0, 4)

    def _tiled(self, kernel: str, own: SlabAt, *pointers: int) -> None:
        if self._num_blocks:
            tiling = Tiling.of(own.shape.layout.bytes_per_block, self._num_blocks, self._device.max_programs)
            counts = (tiling.block_vectors, tiling.tiles_per_block, tiling.num_tiles)
            self._launch(kernel, tiling.num_programs, *map(np.uint64, pointers), *map(np.int64, counts))

    def gather(self, source: SlabAt, own: SlabAt) -> None:
        """One launch for all blocks, however they are scattered."""
        self._tiled("gather", own, source.blocks_pointer, self._column(0), own.blocks_pointer, self._column(1))

    def add_sums(self, own: SlabAt) -> None:
        """One launch; reads what lies in our memory, not what passed through registers."""
        self._tiled("add_sums", own, own.blocks_pointer, self._column(1), self._column(5))

    def end(self) -> None:
        """One download of the results, then the event."""
        runtime = self._cupy.cuda.runtime
        with self._device.here():
            host = self._host.ctypes.data + 3 * 8 * self._room
            num_bytes = 4 * 8 * self._room
            runtime.memcpyAsync(host, self._column(3), num_bytes, runtime.memcpyDeviceToHost, self._stream.ptr)
            self._event.record(self._stream)

    def is_done(self) -> bool:
        """Asks the event; an error of anything that was queued comes out here."""
        runtime = self._cupy.cuda.runtime
        with self._device.here():
            status = int(runtime.eventQuery(self._event.ptr))  # `Event.done` takes an error for not being done
            if status not in (SUCCESS, NOT_READY):
                raise runtime.CUDARuntimeError(status)
            return status == SUCCESS

    def found(self) -> Found:
        """Copies out of the pinned buffer."""
        size = self._num_blocks
        sums = self._host[5:].reshape(-1)[: 2 * size].reshape(size, 2)
        return Found(self._host[3, :size].copy(), self._host[4, :size].copy(), sums.copy())

    def read(self, pointer: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Through the driver's staging: right for tests, faults and digests on the host, not for speed."""
        out = np.empty(num_bytes, np.uint8)
        self._move(out.ctypes.data, pointer, num_bytes, "memcpyDeviceToHost")
        return out

    def write(self, pointer: int, data: npt.NDArray[np.uint8]) -> None:
        """As `read`."""
        data = np.ascontiguousarray(data)
        self._move(pointer, data.ctypes.data, data.nbytes, "memcpyHostToDevice")

    def _move(self, to: int, source: int, num_bytes: int, kind: str) -> None:
        runtime = self._cupy.cuda.runtime
        with self._device.here():
            runtime.memcpyAsync(to, source, num_bytes, getattr(runtime, kind), self._stream.ptr)
            self._stream.synchronize()

    def close(self) -> None:
        """Waits for this stream, then drops it and its buffers."""
        with self._device.here():
            self._stream.synchronize()
        del self._host, self._pinned, self._memory, self._event, self._stream
