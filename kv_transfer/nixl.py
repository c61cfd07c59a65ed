"""Between hosts or within one, by whatever NIXL finds there: RDMA, TCP, shared memory. The reader reads by itself.

Each node has one agent with its slab registered. What a reader needs to reach a slab is told at the door, to who holds
the cluster token; NIXL's own connections check nothing more. Reads are one-sided where the hardware can; where it
cannot (TCP), the owner attends to them while a reader says that it is reading. No notification is used: blocks are
lent under leases, and what ends a lease is the machines' business.
"""

import contextlib
import logging
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgpack
import numpy as np
import numpy.typing as npt

from core.errors import ConfigError, LayoutMismatch, PeerLost
from core.ids import AttemptId, LayoutId, NodeId
from core.kv import FetchTarget, KVHandle
from kv_transfer.copy_plan import Piece, Side, plan_copy
from kv_transfer.door import Door
from kv_transfer.faults import Faults, NoFaults, faults_from_environment
from kv_transfer.knock import DONE, READING, is_open, knock
from kv_transfer.lent import check_columns, check_digests, check_generations
from kv_transfer.linked import LinkedPeer, check_told
from kv_transfer.nixl_agent import DRAM, VRAM, Agent, AgentFailed, Ranges, Transfer, can_run
from kv_transfer.peers import Peers
from kv_transfer.pools import Pool
from kv_transfer.transport import Binding, check_fits, check_layout
from kv_transfer.waiting import naps

__all__ = ["NixlOptions", "NixlTransport", "can_run"]

LOG = logging.getLogger(__name__)

READ_BYTES = 256 << 20
"""What one read asks for at most, so that the progress time-out is about a part of a large fetch."""


@dataclass(frozen=True, slots=True)
class NixlOptions:
    """How a node uses NIXL. `host`: the address at which peers find its door; `progress_s`: for each read."""

    host: str = "127.0.0.1"
    backend: str = "UCX"
    progress_s: float = 10.0
    faults: Faults | None = None


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a peer's slab lies, as its agent told."""

    agent: str
    address: int
    device: int | None

    def ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> Ranges:
        """Parts of the slab, counted from its beginning."""
        return _ranges(self.device, self.address, offsets, sizes)


class RemotePeer(LinkedPeer):
    """A peer whose agent ours can reach, with registered memory for its headers.

    Owns: the buffers, one per fetch that ran at once.
    """

    def __init__(self, binding: Binding, link: socket.socket, agent: Agent, remote: Remote, door: Door) -> None:
        super().__init__(binding, link, self._give_back_all)
        self.remote = remote
        self._agent = agent
        self._door = door
        self._idle: list[Header] = []
        self._headers: list[Header] = []

    @contextmanager
    def header(self) -> Iterator["Header"]:
        """A buffer for its generations that nobody else uses."""
        try:
            header = self._idle.pop()
        except IndexError:
            header = self._new_header()
        try:
            yield header
        finally:
            self._idle.append(header)

    def _new_header(self) -> "Header":
        try:
            made = Header(self._agent, self.binding.shape.num_blocks)
        except AgentFailed as error:
            raise PeerLost(f"{self.binding.node}: {error}") from error
        self._headers.append(made)
        return made

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The owner attends to us within. Raises PeerLost."""
        try:
            self.link.send(READING)
        except OSError as error:
            raise PeerLost(f"{self.binding.node} is gone: its nixl link is closed") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # then its link is closed, and nobody attends
                self.link.send(DONE)

    def _give_back_all(self) -> None:
        self._door.forget(self.link)
        try:
            self._agent.remove(self.remote.agent)
        except AgentFailed as error:
            LOG.info("%s: %s", self.binding.node, error)  # a peer that died was cut off already
        self._door.linger()
        for header in self._headers:
            self._agent.deregister(header.registered)


class Header:
    """Registered memory for a peer's generations. Shapes: `generations` [num_blocks] u64."""

    def __init__(self, agent: Agent, num_blocks: int) -> None:
        self.generations: npt.NDArray[np.uint64] = np.zeros(num_blocks, np.uint64)
        self.address = int(self.generations.ctypes.data)
        self.registered = agent.register(self.address, self.generations.nbytes, DRAM, 0)


class NixlTransport:
    """The transport `nixl`.

    Owns: the agent with our slab's registration, the door, and the bound peers.
    """

    name = "nixl"

    def __init__(
        self, node: NodeId, layout: LayoutId, pool: Pool, token: bytes, options: NixlOptions | None = None
    ) -> None:
        """Raises ConfigError where NIXL is not installed, AgentFailed where it does not work."""
        if why := can_run():
            raise ConfigError([f"transport: nixl: {why}"])
        self._pool = pool
        self._token = token
        self._options = options or NixlOptions()
        self._faults = self._options.faults or faults_from_environment(pool.shape.layout)
        self._peers = Peers()
        self._agent = Agent(f"{node}-{secrets.token_hex(4)}", self._options.backend)
        memory = DRAM if pool.device is None else VRAM
        self._registered: object = self._agent.register(pool.address, pool.shape.total_bytes, memory, pool.device or 0)
        self._is_closed = False
        self._door = Door(token, self._agent.progress)
        self.refusals = self._door.guests.refusals
        try:
            self._binding = Binding(node, layout, pool.shape, self.name, self._door.open(self._options.host))
            place = (self._agent.metadata(), pool.address, pool.device, pool.kind.value)
            self._door.start(msgpack.packb((self._binding.pack(), *place)))
        except BaseException:
            self._door.close()
            self._agent.deregister(self._registered)
            self._agent.close()
            raise

    def binding(self) -> Binding:
        """Our own pool, to be told to peers."""
        return self._binding

    def bind(self, peer: Binding) -> None:
        """Make `peer` readable, and try it. Blocks for a handshake and a small read. Raises as `Transport.bind`."""
        check_fits(peer, self._binding)
        link, hello = knock(peer.node, peer.address, self._token, self._binding.node)
        try:
            metadata, address, device = _place_in(hello, peer, self._pool)
            remote = Remote(self._agent.add(metadata), address, device)
        except AgentFailed as error:
            link.close()
            raise PeerLost(f"{peer.node}: {error}") from error
        except BaseException:
            link.close()
            raise
        bound = RemotePeer(peer, link, self._agent, remote, self._door)
        try:
            with bound.using(), bound.reading(), bound.header() as header:
                self._read_header(bound, header, (0,))
        except PeerLost:
            bound.end()
            raise
        self._door.watch(link, bound.end)
        self._peers.bind(bound)

    def unbind(self, peer: NodeId) -> None:
        """Forget `peer`; the connection is cut once running fetches have ended."""
        self._peers.unbind(peer)

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        """Copy the handle's blocks into ours. Raises as `Transport.fetch`."""
        check_layout(handle, self._binding)
        with self._peers.reading(handle.owner) as peer:
            assert isinstance(peer, RemotePeer)
            check_columns(handle, into, peer.binding.shape.num_blocks, self._pool.shape.num_blocks)
            if handle.block_ids:
                with peer.using(), peer.reading(), peer.header() as header:
                    self._fetch(peer, header, handle, into)
        return len(handle.block_ids) * self._pool.shape.layout.bytes_per_block

    def _fetch(self, peer: RemotePeer, header: Header, handle: KVHandle, into: FetchTarget) -> None:
        pool, faults = self._pool, self._faults
        pool.write_generations(into.block_ids, into.generations)
        check_generations(handle, self._read_header(peer, header, handle.block_ids), "before")
        for part in _parts(_pieces(handle, into, peer.binding, pool), READ_BYTES):
            self._read_blocks(peer, part)
        if not isinstance(faults, NoFaults):
            pool.tell(into.block_ids, faults.after_copy)
        check_generations(handle, self._read_header(peer, header, handle.block_ids), "during")
        check_digests(handle, pool.digests(into.block_ids))
        peer.check()
        if not isinstance(faults, NoFaults):
            pool.tell(into.block_ids, faults.after_check)

    def _read_header(self, peer: RemotePeer, header: Header, blocks: Sequence[int]) -> list[int]:
        """Their generations of these blocks: one range from the first to the last, however they are scattered."""
        first, size = min(blocks), max(blocks) + 1 - min(blocks)
        ours = _ranges(None, header.address, [8 * first], [8 * size])
        self._read(peer, ours, peer.remote.ranges([8 * first], [8 * size]))
        found: list[int] = header.generations[list(blocks)].tolist()
        return found

    def _read_blocks(self, peer: RemotePeer, pieces: Sequence[Piece]) -> None:
        sizes = [piece.num_bytes for piece in pieces]
        ours = _ranges(self._pool.device, self._pool.address, [piece.target_offset for piece in pieces], sizes)
        self._read(peer, ours, peer.remote.ranges([piece.source_offset for piece in pieces], sizes))

    def _read(self, peer: RemotePeer, ours: Ranges, theirs: Ranges) -> None:
        """Blocks until all of it has arrived. Raises PeerLost."""
        node = peer.binding.node
        try:
            transfer = self._agent.read(peer.remote.agent, ours, theirs)
            self._wait(peer, transfer)
        except AgentFailed as error:
            if not is_open(peer.link):
                raise PeerLost(f"{node} is gone: its nixl link is closed ({error})") from error
            raise PeerLost(f"{node}: {error}") from error

    def _wait(self, peer: RemotePeer, transfer: Transfer) -> None:
        try:
            for waited in naps():
                if transfer.is_done():
                    return
                peer.check()
                if waited > self._options.progress_s:
                    peer.end()  # nothing is asked of it again, and the connection is cut after this fetch
                    raise PeerLost(f"{peer.binding.node}: a read made no progress for {waited:.1f} s")
        finally:
            if not transfer.release():
                self._outwait(peer, transfer)

    def _outwait(self, peer: RemotePeer, transfer: Transfer) -> None:
        """A read that cannot be cancelled may still write into the targets: it is waited for, within reason."""
        peer.end()
        with contextlib.suppress(AgentFailed):
            for waited in naps():
                if transfer.is_done():
                    break
                if waited > self._options.progress_s:
                    LOG.critical("a read from %s can neither end nor be cancelled", peer.binding.node)
                    return
        transfer.release()

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        """Nothing: a bound peer can read every block, and generations and digests tell which reads count."""

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """Nothing: registered memory stays readable; the next writer's generation makes a late read void."""

    def close(self) -> None:
        """Let go of all peers, then wait until readers have let go of our memory. Twice is fine."""
        self._peers.close()
        self._door.close()
        if not self._is_closed:
            self._is_closed = True
            self._agent.deregister(self._registered)
            self._agent.close()


def _ranges(device: int | None, address: int, offsets: Sequence[int], sizes: Sequence[int]) -> Ranges:
    memory = DRAM if device is None else VRAM
    return Ranges(memory, device or 0, [address + offset for offset in offsets], sizes)


def _pieces(handle: KVHandle, into: FetchTarget, peer: Binding, pool: Pool) -> tuple[Piece, ...]:
    source = Side(peer.shape, handle.first_block, handle.block_ids)
    return plan_copy(source, Side(pool.shape, handle.first_block, into.block_ids), source.tokens)


def _parts(pieces: Sequence[Piece], limit: int) -> Iterator[list[Piece]]:
    """The pieces, in runs of about `limit` bytes."""
    part: list[Piece] = []
    for piece in pieces:
        part.append(piece)
        if sum(each.num_bytes for each in part) >= limit:
            yield part
            part = []
    if part:
        yield part


def _place_in(hello: bytes, peer: Binding, pool: Pool) -> tuple[bytes, int, int | None]:
    """What the owner said of itself: metadata, address and device of its slab. Raises PeerLost, LayoutMismatch."""
    try:
        told, metadata, address, device, kind = msgpack.unpackb(hello, use_list=False)
        if not (type(told) is bytes and type(metadata) is bytes and type(address) is int):
            raise ValueError("a field has a wrong type")
        if device is not None and not (type(device) is int and 0 <= device < 1 << 16):
            raise ValueError(f"{device!r} is no device")
    except (ValueError, TypeError) as error:
        raise LayoutMismatch(f"{peer.node}: not a hello of nixl: {error}") from error
    check_told(Binding.unpack(told), peer)
    if kind != pool.kind.value:
        raise LayoutMismatch(f"{peer.node}: seals with {kind}, this node compares {pool.kind.value}")
    return metadata, address, device
