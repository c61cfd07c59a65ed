"""What gloo and nccl have in common: the reader asks over TCP, the owner serves, and the bytes take their own pair.

Nothing is read at the owner but what its node has lent to this very reader, and nothing after the lease was revoked.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from core.errors import PeerLost, TransferError
from core.ids import AttemptId, NodeId
from core.kv import FetchTarget, KVHandle
from kv_transfer.asking import LINE_ERRORS, Asking, Line, Pace, Refused, translated
from kv_transfer.control import connect
from kv_transfer.faults import Faults, faults_from_environment
from kv_transfer.frames import BadFrame, Refusals
from kv_transfer.lending import Lending
from kv_transfer.packing import Blocks, BounceBlocks
from kv_transfer.pair_server import PairServer
from kv_transfer.pairs import MAX_PAIRS, PairBook, PairBroken, PairKind
from kv_transfer.peers import Peer, Peers
from kv_transfer.relayout import MappedCopy
from kv_transfer.serving import Meanwhile, Served
from kv_transfer.slab import SlabView
from kv_transfer.transport import Binding, check_fits, check_lent, check_maps_onto

Connect = Callable[[], Line]
Answer = TypeVar("Answer")


class PairPeer(Peer):
    """An owner that we may ask.

    Owns: the line to it, made when it is needed and again after it broke; one fetch uses it at a time.
    """

    def __init__(self, binding: Binding, line: Line, connect_again: Connect, book: PairBook) -> None:
        super().__init__(binding, SlabView.nothing(), lambda: True, self._close)
        self._line: Line | None = line
        self._connect = connect_again
        self._book = book
        self._lock = threading.Lock()
        self._pace = Pace()
        self._in_use: Line | None = line

    def retire(self) -> None:
        """From now on every `check` fails, and what waits for the owner ends."""
        super().retire()
        if (line := self._in_use) is not None:
            line.control.interrupt()

    def fetch(self, asking: Asking) -> int:
        """Run it on the line. Raises as `Transport.fetch`."""
        with self._lock:
            return self._over_line(lambda line: asking.run(line, self._pace))

    def measure(self) -> float:
        """Bytes a second. Raises PeerLost."""
        with self._lock:
            return self._over_line(Line.measure)

    def check_line(self) -> None:
        """Raises PeerLost when we have let go of the owner, or it of us."""
        self.check()
        if self._line is None or not self._line.control.is_open():
            raise PeerLost(f"{self.binding.node} is gone: its {self.binding.transport} link is closed")

    def prove(self) -> None:
        """That the owner is there. Raises PeerLost."""
        with self._lock:
            self._live_line()

    def _over_line(self, deed: Callable[[Line], Answer]) -> Answer:
        """Once more where the owner had given our pair to somebody else. A line that saw an error is not used again."""
        try:
            try:
                return deed(self._line_with_pair())
            except Refused as refused:
                if refused.reason != "pair":
                    raise
                self._drop()
                return deed(self._line_with_pair())
        except BaseException as error:
            self._drop()
            self.check()
            if isinstance(error, PairBroken | TimeoutError):
                self._pace.stalled()
            if isinstance(error, LINE_ERRORS):
                raise translated(self.binding.node, error) from error
            raise

    def _live_line(self) -> Line:
        if self._line is not None and not self._line.control.is_quiet():
            self._drop()
        if self._line is None:
            self.check()
            self._line = self._in_use = self._connect()
            self.check()
        return self._line

    def _line_with_pair(self) -> Line:
        line = self._live_line()
        if line.has_pair:
            self._book.use(self)
        else:
            self._book.admit(self)
            line.open_pair()
        return line

    def _drop(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()
        self._book.forget(self)

    def give_up_pair(self) -> bool:
        """Another peer needs one, and this one is idle; with the line closed, the owner gives up its end as well."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            line, self._line = self._line, None
            if line is not None:
                line.close()
            return True
        finally:
            self._lock.release()

    def _close(self) -> None:
        """Nobody fetches any more, but a pair may just be given up."""
        with self._lock:
            self._drop()


def _ask(peer: PairPeer, handle: KVHandle, into: FetchTarget, pool: Blocks, faults: Faults) -> int:
    asking = Asking(handle, into, pool, faults, peer.check_line)
    asking.begin(peer.binding.shape.num_blocks)
    if handle.block_ids:
        return peer.fetch(asking)
    peer.prove()
    return 0


class AskedCopy(MappedCopy):
    """A fetch from a pool of another layout, whose blocks the owner sends."""

    def read(self, part: KVHandle, into: FetchTarget, bounce: SlabView) -> int:
        """Have the owner send some blocks, and prove them."""
        assert isinstance(self.peer, PairPeer)
        pool = BounceBlocks(bounce, self.peer.binding.shape.layout)
        return _ask(self.peer, part, into, pool, self.faults)


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What a two-sided transport may be told. `meanwhile` runs at the owner between its two looks at the header."""

    faults: Faults | None = None
    max_pairs: int = MAX_PAIRS
    meanwhile: Meanwhile = lambda: None


class PairTransport:
    """A two-sided transport; `kind` says over what the bytes go.

    Owns: the door, the bound peers, what is lent, and the open pairs.
    """

    def __init__(
        self, own: Binding, pool: Blocks, kind: PairKind, server: PairServer, token: bytes, options: PairOptions
    ) -> None:
        self.name = own.transport
        self.refusals = Refusals()
        self._binding = own
        self._pool = pool
        self._kind = kind
        self._server = server
        self._token = token
        self._faults = options.faults or faults_from_environment(pool.shape.layout)
        self._lending = Lending()
        self._book = PairBook(options.max_pairs)
        self._peers = Peers()
        self._server.start(Served(token, own, pool, self._lending, kind, self._book, self.refusals, options.meanwhile))

    def binding(self) -> Binding:
        """Our own pool, to be told to peers."""
        return self._binding

    def num_pairs(self) -> int:
        """How many pairs are open, both directions together."""
        return self._book.num_open()

    def bind(self, peer: Binding) -> None:
        """Make `peer` readable. Blocks for a handshake. Raises as `Transport.bind`."""
        (check_fits if self._pool.slab is None else check_maps_onto)(peer, self._binding)
        self._peers.bind(PairPeer(peer, self._connect(peer), lambda: self._connect(peer), self._book))

    def _connect(self, peer: Binding) -> Line:
        return Line(connect(peer, self._token, self._binding.node), self._kind, self._pool)

    def unbind(self, peer: NodeId) -> None:
        """Forget `peer`; what is lent to it stays so until it is revoked."""
        self._peers.unbind(peer)

    def fetch(self, handle: KVHandle, into: FetchTarget) -> int:
        """Have the owner send the handle's blocks, and prove them. Raises as `Transport.fetch`."""
        with self._peers.reading(handle.owner) as peer:
            assert isinstance(peer, PairPeer)
            check_lent(handle, peer.binding)
            try:
                if peer.binding.shape.layout == self._pool.shape.layout:
                    return _ask(peer, handle, into, self._pool, self._faults)
                assert self._pool.slab is not None  # else `bind` has refused it
                return AskedCopy(handle, into, peer, self._pool.slab, self._faults).run()
            except TransferError as error:
                self._count(error)
                raise

    def _count(self, error: TransferError) -> None:
        if isinstance(error.__cause__, BadFrame):
            self.refusals.add(error.__cause__.reason)

    def measure(self, peer: NodeId) -> float:
        """Bytes a second from this peer, measured now. Raises PeerLost."""
        with self._peers.reading(peer) as bound:
            assert isinstance(bound, PairPeer)
            return bound.measure()

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        """Let `reader` read this attempt's lease."""
        self._lending.lend(attempt, reader)

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """When it returns, nothing is read through this lease any more; waits for the piece that is packed now."""
        self._lending.revoke(attempt, reader)

    def close(self) -> None:
        """Turn all readers out and let go of all peers."""
        self._peers.close()
        self._server.close()
        self._kind.close()
