"""The owner's side of a two-sided transport: one reader's connection, and what it may read through it."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor

from core.errors import LayoutMismatch
from core.ids import AttemptId, NodeId
from kv_transfer.control import Control, Frame, Visitor, welcome
from kv_transfer.copy_plan import MAX_PIECE_BYTES, check_ids
from kv_transfer.frames import BadFrame, Kind, Refusals
from kv_transfer.lending import Lending
from kv_transfer.packing import Blocks
from kv_transfer.pairs import OWNER, PROGRESS_S, Pair, PairBook, PairBroken, PairKind, Work
from kv_transfer.transport import Binding

LOG = logging.getLogger(__name__)

Meanwhile = Callable[[], None]


class Refusal(Exception):
    """What was asked is not served. `reason` is one word: incarnation, lease, range, generation, pair."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Asked:
    """The blocks of one fetch, as the reader asked for them: laid end to end, they are what pieces are cut from."""

    attempt: AttemptId
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """What all connections of one node serve from. `meanwhile` runs between reading blocks and looking again."""

    token: bytes
    binding: Binding
    pool: Blocks
    lending: Lending
    kind: PairKind
    book: PairBook
    refusals: Refusals
    meanwhile: Meanwhile


class Session:
    """One reader's connection, from its first byte to its last.

    Owns: the connection, at most one pair, and two buffers, one packed while the other travels.
    """

    def __init__(self, control: Control, served: Served) -> None:
        self._control = control
        self._served = served
        self._lock = threading.Lock()
        self._reader = NodeId("")
        self._number = 0
        self._asked: Asked | Refusal = Refusal("order", "nothing was asked for")
        self._pair: Pair | None = None
        self._buffers: list[Tensor | None] = [None, None]
        self._works: list[Work | None] = [None, None]

    def run(self) -> None:
        """Serve until either side ends it; in a thread of its own."""
        why = "left"
        try:
            self._serve(welcome(self._control, self._served.binding, self._served.token))
        except BadFrame as error:
            self._served.refusals.add(error.reason)
            why = f"is sent away: {error}"
            self._try_refuse("frame", str(error))
        except (OSError, PairBroken) as error:
            why = f"is gone: {error}"
        finally:
            self.close()
        LOG.log(
            logging.INFO if self._reader else logging.WARNING, "kv: reader %s %s", self._reader or "(nameless)", why
        )

    def interrupt(self) -> None:
        """End it soon; from any thread."""
        self._control.interrupt()

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._drop_pair()
        self._control.close()

    def give_up_pair(self) -> bool:
        """Somebody else needs one, and this one is idle."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._end_pair()
            return True
        finally:
            self._lock.release()

    def _serve(self, visitor: Visitor) -> None:
        if visitor.wanted != self._served.binding.node:
            raise BadFrame("incarnation", f"{visitor.node} means {visitor.wanted}, which is not here")
        self._reader = visitor.node
        LOG.info("kv: %s may ask by %s", self._reader, self._served.kind.name)
        while True:
            frame = self._control.receive(None)
            with self._lock:
                self._answer(frame)

    def _answer(self, frame: Frame) -> None:
        try:
            match frame.kind:
                case Kind.OPEN:
                    self._open(*cast(tuple[int], frame.fields))
                case Kind.ASK:
                    self._ask(*cast(tuple[int, str, str, bytes, bytes], frame.fields))
                case Kind.WANT:
                    self._want(*cast(tuple[int, int, int], frame.fields))
                case Kind.PROBE:
                    self._probe(*cast(tuple[int, int], frame.fields))
                case _:
                    raise BadFrame("order", f"a frame {frame.kind.name} from a reader")
        except Refusal as refusal:
            self._served.refusals.add(refusal.reason)
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        text = str(refusal)  # a log record that held the error itself would keep its traceback's buffers
        LOG.warning("kv: refused %s: %s", self._reader, text)
        self._control.send(PROGRESS_S, Kind.REFUSED, self._number, refusal.reason, text)

    def _try_refuse(self, reason: str, text: str) -> None:
        try:
            self._control.send(PROGRESS_S, Kind.REFUSED, self._number, reason, text)
        except OSError:
            LOG.debug("a reader did not wait to be refused")

    def _count(self, number: int) -> None:
        """Requests count up by one each: one that comes twice or early is not served. Raises BadFrame."""
        if number != self._number + 1:
            raise BadFrame("order", f"request {number} after request {self._number}")
        self._number = number

    # ── the pair ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, number: int) -> None:
        self._drop_pair()
        self._served.book.admit(self)
        try:
            self._pair = Pair(self._served.kind, self._control, OWNER, number, self._served.pool.buffer(1))
        except BaseException:
            self._drop_pair()
            raise

    def _drop_pair(self) -> None:
        self._end_pair()
        self._served.book.forget(self)

    def _end_pair(self) -> None:
        pair, self._pair = self._pair, None
        self._works = [None, None]
        if pair is not None:
            pair.close()
        self._buffers = [None, None]

    def _send(self, fill: Callable[[Tensor], tuple[object, ...]], num_bytes: int) -> None:
        """Fill a buffer that no send uses, announce what `fill` says of it, and begin to send it."""
        if self._pair is None:
            raise Refusal("pair", "the pair was closed to make room for another")
        self._served.book.use(self)
        self._buffers.reverse()
        self._works.reverse()
        if (work := self._works[0]) is not None:
            self._pair.wait(work, 2 * PROGRESS_S)  # two pieces may be on their way
            self._works[0] = None
        buffer = self._buffers[0]
        if buffer is None or buffer.numel() < num_bytes:
            buffer = self._buffers[0] = self._served.pool.buffer(num_bytes)
        said = fill(buffer[:num_bytes])
        self._control.send(PROGRESS_S, Kind.PIECE, self._number, *said)
        self._works[0] = self._pair.send(buffer[:num_bytes])

    # ── the blocks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, number: int, owner: str, attempt: str, block_ids: bytes, generations: bytes) -> None:
        """Judge it now; a refusal is told to the pieces that are wanted of it."""
        self._count(number)
        self._asked = Refusal("range", "the columns of blocks and generations differ in length")
        if len(block_ids) % 4 == 0 and len(generations) == 2 * len(block_ids):
            ids, lent = np.frombuffer(block_ids, "<u4").tolist(), np.frombuffer(generations, "<u8").tolist()
            try:
                self._asked = Asked(AttemptId(attempt), tuple(ids), tuple(lent))
                self._check(owner, self._asked)
            except Refusal as refusal:
                self._asked = refusal

    def _check(self, owner: str, asked: Asked) -> None:
        if owner != self._served.binding.node:
            raise Refusal("incarnation", f"{owner} is not here; this is {self._served.binding.node}")
        if not self._served.lending.is_lent(asked.attempt, self._reader):
            raise Refusal("lease", f"{asked.attempt}: not lent to {self._reader}")
        try:
            check_ids(asked.block_ids, self._served.pool.shape.num_blocks, "source")
        except LayoutMismatch as error:
            raise Refusal("range", str(error)) from error

    def _want(self, number: int, start: int, end: int) -> None:
        self._count(number)
        if isinstance(self._asked, Refusal):
            raise Refusal(self._asked.reason, str(self._asked))
        asked, size = self._asked, self._served.pool.shape.layout.bytes_per_block
        whole = start % size == 0 and end % size == 0
        fits = 0 <= start < end <= len(asked.block_ids) * size and end - start <= max(MAX_PIECE_BYTES, size)
        if not fits or not (whole or start // size == (end - 1) // size):
            raise Refusal("range", f"bytes {start} to {end} are no piece of {len(asked.block_ids)} blocks")
        self._send(lambda packed: self._pack(asked, start, end, packed), end - start)

    def _pack(self, asked: Asked, start: int, end: int, packed: Tensor) -> tuple[object, ...]:
        """Read the blocks while nobody can revoke them; what the header said before and after goes with the piece."""
        size, pool = self._served.pool.shape.layout.bytes_per_block, self._served.pool
        columns = slice(start // size, -(-end // size))
        with self._served.lending.reading(asked.attempt, self._reader) as is_lent:
            if not is_lent:
                raise Refusal("lease", f"{asked.attempt}: no longer lent to {self._reader}")
            before = pool.generations(asked.block_ids[columns])
            self._check_generations(asked, columns, before, "before")
            pool.pack(asked.block_ids, start, packed)
            self._served.meanwhile()
            after = pool.generations(asked.block_ids[columns])
            self._check_generations(asked, columns, after, "during")
        return start, end, _u64(before), _u64(after)

    def _check_generations(self, asked: Asked, columns: slice, found: tuple[int, ...], when: str) -> None:
        rows = zip(asked.block_ids[columns], asked.generations[columns], found, strict=True)
        for block, lent, seen in rows:
            if seen != lent:
                where = f"block {block} of {self._served.binding.node}"
                text = f"{where} was reused {when} the copy (generation {seen}, lent as {lent})"
                raise Refusal("generation", f"{asked.attempt}: {text}")

    def _probe(self, number: int, num_bytes: int) -> None:
        """Bytes that mean nothing, for measuring the link."""
        self._count(number)
        if not 0 < num_bytes <= MAX_PIECE_BYTES:
            raise Refusal("range", f"{num_bytes} bytes to measure with; the limit is {MAX_PIECE_BYTES}")
        self._send(lambda packed: _fill_with_nothing(packed), num_bytes)


def _fill_with_nothing(packed: Tensor) -> tuple[object, ...]:
    packed.zero_()  # a buffer may hold what another reader was sent
    return 0, packed.numel(), b"", b""


def _u64(values: tuple[int, ...]) -> bytes:
    return np.array(values, "<u8").tobytes()
