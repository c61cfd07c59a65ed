"""Device memory between processes of one host: the owner hands out a handle, the reader maps it and copies by itself.

The owner takes no part in a copy. Its handle is told only to who proved itself at the door, and the link made there is
the sign of life of both sides: when the owner ends it, the reader unmaps; only when the reader has ended it may the
owner free the memory. Between GPUs that reach each other (NVLink) the same loads go over that link, without staging.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgpack

from core.errors import LayoutMismatch, PeerLost
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle
from kv_transfer.cuda_device import can_run
from kv_transfer.device import HANDLE_BYTES, DeviceFailed, SlabAt, Stream
from kv_transfer.device_copy import DeviceCopy, DigestKind, Stalled
from kv_transfer.device_slab import DeviceSlab
from kv_transfer.door import Door
from kv_transfer.faults import Faults, faults_from_environment
from kv_transfer.knock import knock
from kv_transfer.linked import LinkedPeer, check_told
from kv_transfer.peers import Peers
from kv_transfer.transport import Binding, check_fits, check_layout

__all__ = ["CudaIpcTransport", "IpcOptions", "can_run"]


@dataclass(frozen=True, slots=True)
class IpcOptions:
    """How a node reads device memory. `progress_s`: how long a copy may take before the device counts as stalled."""

    progress_s: float = 10.0
    faults: Faults | None = None


class MappedPeer(LinkedPeer):
    """A peer whose slab lies in our address space at `at`."""

    def __init__(self, binding: Binding, link: socket.socket, give_back: Callable[[], None], at: SlabAt) -> None:
        super().__init__(binding, link, give_back)
        self.at = at


class CudaIpcTransport:
    """The transport `cuda_ipc`.

    Owns: the door to our slab, the bound peers with their mappings, and the streams; one stream per running fetch.
    """

    name = "cuda_ipc"

    def __init__(
        self, node: NodeId, layout: LayoutId, slab: DeviceSlab, token: bytes, options: IpcOptions | None = None
    ) -> None:
        self._slab = slab
        self._token = token
        self._options = options or IpcOptions()
        self._faults = self._options.faults or faults_from_environment(slab.shape.layout)
        self._stalled = Stalled(self._options.progress_s)
        self._peers = Peers()
        self._streams: list[Stream] = []
        self._is_closing = False
        self._door = Door(token)
        self.refusals = self._door.guests.refusals
        try:
            self._binding = Binding(node, layout, slab.shape, self.name, self._door.open())
            handle = slab.device.export(slab.at.pointer)
            self._door.start(msgpack.packb((self._binding.pack(), handle, DigestKind.SUM128.value)))
        except BaseException:
            self._door.close()
            raise

    def binding(self) -> Binding:
        """Our own pool, to be told to peers."""
        return self._binding

    def bind(self, peer: Binding) -> None:
        """Make `peer` readable. Blocks for a handshake. Raises as `Transport.bind`."""
        check_fits(peer, self._binding)
        link, hello = knock(peer.node, peer.address, self._token, self._binding.node)
        try:
            pointer = self._map(peer, _handle_in(hello, peer))
        except BaseException:
            link.close()
            raise

        def give_back() -> None:
            self._door.forget(link)
            self._slab.device.unmap(pointer)

        mapped = MappedPeer(peer, link, give_back, SlabAt(pointer, peer.shape))
        self._door.watch(link, mapped.end)
        self._peers.bind(mapped)

    def _map(self, peer: Binding, handle: bytes) -> int:
        try:
            return self._slab.device.map(handle, peer.shape.total_bytes)
        except DeviceFailed as error:
            where = self._slab.device.description
            raise PeerLost(f"{peer.node}: its memory cannot be mapped on {where}: {error}") from error

    def unbind(self, peer: NodeId) -> None:
        """Forget `peer`; its memory is unmapped once running fetches have ended."""
        self._peers.unbind(peer)

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        """Copy the handle's blocks into ours. Raises as `Transport.fetch`."""
        check_layout(handle, self._binding)
        with self._peers.reading(handle.owner) as peer:
            assert isinstance(peer, MappedPeer)
            self._stalled.check()
            with peer.using(), self._stream() as stream:
                copy = DeviceCopy(handle, into, peer.at, self._slab.at, stream, self._faults)
                return copy.run(peer.check, lambda is_done: self._wait(is_done, handle.owner))

    def _wait(self, is_done: Callable[[], bool], owner: NodeId) -> bool:
        return self._stalled.wait(is_done, owner, lambda: self._is_closing)

    @contextmanager
    def _stream(self) -> Iterator[Stream]:
        """A stream that nobody else uses; one that failed, or still runs, is not used again."""
        stream = self._idle_stream()
        try:
            yield stream
        finally:
            if _is_idle(stream):
                self._streams.append(stream)

    def _idle_stream(self) -> Stream:
        try:
            return self._streams.pop()
        except IndexError:
            pass
        try:
            return self._slab.device.stream()
        except DeviceFailed as error:
            raise PeerLost(f"the device gives no stream: {error}") from error

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        """Nothing: a bound peer can read every block, and generations and digests tell which reads count."""

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """Nothing: a mapping cannot be taken back; the next writer's generation makes a late read void."""

    def close(self) -> None:
        """Let go of all peers, then wait until readers have let go of our memory; only then may it be freed."""
        self._is_closing = True
        self._peers.close()
        self._door.close()
        while self._streams:
            self._streams.pop().close()


def _is_idle(stream: Stream) -> bool:
    try:
        return stream.is_done()
    except DeviceFailed:
        return False


def _handle_in(hello: bytes, peer: Binding) -> bytes:
    """What the owner said of itself: the handle of its memory. Raises PeerLost, LayoutMismatch."""
    try:
        told, handle, kind = msgpack.unpackb(hello, use_list=False)
        if type(handle) is not bytes or not 0 < len(handle) <= HANDLE_BYTES or type(told) is not bytes:
            raise ValueError("a handle or binding is malformed")
    except (ValueError, TypeError) as error:
        raise LayoutMismatch(f"{peer.node}: not a hello of cuda_ipc: {error}") from error
    check_told(Binding.unpack(told), peer)
    if kind != DigestKind.SUM128.value:
        raise LayoutMismatch(f"{peer.node}: seals with {kind}, this node compares {DigestKind.SUM128.value}")
    return handle
