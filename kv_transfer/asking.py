"""The reader's side of a two-sided transport: a connection to one owner, and one fetch over it."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor

from core.errors import LayoutMismatch, LeaseExpired, PeerLost, TransferError
from core.kv import FetchTarget, KVHandle
from kv_transfer.control import Control
from kv_transfer.copy_plan import MAX_PIECE_BYTES
from kv_transfer.faults import Block, Faults, NoFaults
from kv_transfer.frames import BadFrame, Kind
from kv_transfer.lent import check_columns, check_digests
from kv_transfer.packing import Blocks
from kv_transfer.pairs import PROGRESS_S, READER, Pair, PairBroken, PairKind, Work

FIRST_PIECE_BYTES = 256 << 10
MIN_PIECE_BYTES = 16 << 10
NUM_AHEAD = 2
"""Pieces that are wanted at once: one travels while the other is packed."""

PROBE_BYTES = 4 << 20

ERRORS: dict[str, type[TransferError]] = {
    "generation": LeaseExpired,
    "lease": LeaseExpired,
    "range": LayoutMismatch,
}
"""What a refusal's reason means to a fetch; any other means that the owner cannot be read from."""


class Pace:
    """How large the pieces of one link are: as much as it moves in a small part of the progress limit.

    So a slow link makes small pieces instead of stalls; below 16 KiB in 2 s a link counts as dead.
    """

    def __init__(self) -> None:
        self.piece_bytes = FIRST_PIECE_BYTES

    def took(self, num_bytes: int, seconds: float) -> None:
        """A piece arrived."""
        if seconds > PROGRESS_S / 4:
            self.piece_bytes = max(MIN_PIECE_BYTES, self.piece_bytes // 4)
        elif seconds < PROGRESS_S / 16 and num_bytes * 2 > self.piece_bytes:
            self.piece_bytes = min(MAX_PIECE_BYTES, self.piece_bytes * 2)

    def stalled(self) -> None:
        """A piece did not arrive: begin again with the smallest."""
        self.piece_bytes = MIN_PIECE_BYTES


class Line:
    """A proven connection to one owner, and the pair that its bytes take.

    Owns: the connection, the pair and the buffers. One fetch at a time; after any error only `close`.
    """

    def __init__(self, control: Control, kind: PairKind, pool: Blocks) -> None:
        self.control = control
        self.is_broken = False
        self._kind = kind
        self._pool = pool
        self._pair: Pair | None = None
        self._num_pairs = 0
        self._number = 0
        self._buffers: list[Tensor | None] = [None, None]

    @property
    def has_pair(self) -> bool:
        """Whether the pair is made."""
        return self._pair is not None

    def open_pair(self) -> None:
        """Make it, together with the owner. Raises PairBroken, OSError."""
        self._num_pairs += 1
        self.control.send(PROGRESS_S, Kind.OPEN, self._num_pairs)
        self._pair = Pair(self._kind, self.control, READER, self._num_pairs, self._pool.buffer(1))

    def close_pair(self) -> None:
        """It is made again when it is needed. Twice is fine."""
        pair, self._pair = self._pair, None
        if pair is not None:
            pair.close()
        self._buffers = [None, None]

    def close(self) -> None:
        """Give everything back."""
        self.close_pair()
        self.control.close()

    def ask(self, kind: Kind, *fields: object) -> int:
        """Send a request; returns its number."""
        self._number += 1
        self.control.send(PROGRESS_S, kind, self._number, *fields)
        return self._number

    def answer(self, number: int) -> tuple[int, int, bytes, bytes]:
        """What the owner announces for this request. Raises Refused, BadFrame, OSError."""
        frame = self.control.receive(PROGRESS_S)
        if frame.kind is Kind.REFUSED:
            _number, reason, text = cast(tuple[int, str, str], frame.fields)
            raise Refused(reason, text)
        if frame.kind is not Kind.PIECE or frame.fields[0] != number:
            raise BadFrame("order", f"a frame {frame.kind.name} where the answer to request {number} is due")
        return cast(tuple[int, int, bytes, bytes], frame.fields[1:])

    def begin(self, num_bytes: int) -> tuple[Tensor, Work]:
        """Begin to receive so many bytes, into the buffer that was used longer ago."""
        if self._pair is None:
            raise PairBroken("the pair is closed")
        self._buffers.reverse()
        buffer = self._buffers[0]
        if buffer is None or buffer.numel() < num_bytes:
            buffer = self._buffers[0] = self._pool.buffer(num_bytes)
        packed = buffer[:num_bytes]
        return packed, self._pair.receive(packed)

    def end(self, work: Work) -> None:
        """Wait for it. Raises PairBroken after the progress limit."""
        assert self._pair is not None
        self._pair.wait(work)

    def measure(self) -> float:
        """Bytes a second, of some that mean nothing; the first piece warms the link and is not counted."""
        started = 0.0
        for _ in range(3):
            number = self.ask(Kind.PROBE, PROBE_BYTES)
            self.answer(number)
            _packed, work = self.begin(PROBE_BYTES)
            self.end(work)
            started = started or time.monotonic()
        return 2 * PROBE_BYTES / max(time.monotonic() - started, 1e-9)


class Refused(Exception):
    """The owner does not serve what was asked."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `start` to `end` of the fetch's blocks laid end to end."""

    number: int
    start: int
    end: int


class Asking:
    """One fetch over a line.

    Owns: nothing. Raises: from `run`, as `Transport.fetch`, and what the line raises.
    """

    def __init__(
        self, handle: KVHandle, into: FetchTarget, pool: Blocks, faults: Faults, check_peer: Callable[[], None]
    ) -> None:
        self._handle = handle
        self._into = into
        self._pool = pool
        self._faults = faults
        self._check_peer = check_peer
        self._size = pool.shape.layout.bytes_per_block

    def begin(self, num_source_blocks: int) -> None:
        """Check the columns, and say in our header that the targets are about to change."""
        check_columns(self._handle, self._into, num_source_blocks, self._pool.shape.num_blocks)
        self._pool.write_generations(self._into.block_ids, self._into.generations)

    def run(self, line: Line, pace: Pace) -> int:
        """Fetch it all; returns the bytes moved."""
        handle, total = self._handle, len(self._handle.block_ids) * self._size
        if not total:
            return 0
        ids, lent = np.array(handle.block_ids, "<u4").tobytes(), np.array(handle.generations, "<u8").tobytes()
        line.ask(Kind.ASK, str(handle.owner), str(handle.attempt), ids, lent)
        wanted: deque[Piece] = deque()
        arrived: tuple[Piece, Tensor] | None = None
        asked = 0
        while asked < total or wanted:
            while asked < total and len(wanted) < NUM_AHEAD:
                wanted.append(self._want(line, asked, total, pace.piece_bytes))
                asked = wanted[-1].end
            piece = wanted.popleft()
            self._check_answer(piece, line.answer(piece.number))
            started = time.monotonic()
            packed, work = line.begin(piece.end - piece.start)
            if arrived is not None:
                self._take(*arrived)
            line.end(work)
            pace.took(piece.end - piece.start, time.monotonic() - started)
            arrived = piece, packed
            self._check_peer()
        assert arrived is not None
        self._take(*arrived)
        self._check_peer()
        return total

    def _want(self, line: Line, start: int, total: int, piece_bytes: int) -> Piece:
        """The next piece: whole blocks, or where those are too large, part of one."""
        if start % self._size == 0 and piece_bytes >= self._size:
            end = min(total, start + piece_bytes // self._size * self._size)
        else:
            end = min((start // self._size + 1) * self._size, start + piece_bytes)
        return Piece(line.ask(Kind.WANT, start, end), start, end)

    def _check_answer(self, piece: Piece, said: tuple[int, int, bytes, bytes]) -> None:
        """The owner has looked as well; we believe what its header said, not that it looked."""
        start, end, before, after = said
        columns = slice(piece.start // self._size, -(-piece.end // self._size))
        lent = self._handle.generations[columns]
        if (start, end) != (piece.start, piece.end) or len(before) != 8 * len(lent) or len(after) != len(before):
            raise BadFrame("range", f"bytes {start} to {end} where {piece.start} to {piece.end} were wanted")
        for when, told in (("before", before), ("during", after)):
            found = tuple(np.frombuffer(told, "<u8").tolist())
            for block, mine, seen in zip(self._handle.block_ids[columns], lent, found, strict=True):
                if mine != seen:
                    where = f"block {block} of {self._handle.owner}"
                    text = f"{where} was reused {when} the copy (generation {seen}, lent as {mine})"
                    raise LeaseExpired(f"{self._handle.attempt}: {text}")

    def _take(self, piece: Piece, packed: Tensor) -> None:
        """Into our blocks; those that are whole now are proven."""
        self._pool.unpack(packed, self._into.block_ids, piece.start)
        columns = tuple(range(piece.start // self._size, piece.end // self._size))
        whole = tuple(self._into.block_ids[column] for column in columns)
        self._tell_faults(self._faults.after_copy, whole)
        check_digests(self._handle.take(columns), self._pool.digests(whole))
        self._tell_faults(self._faults.after_check, whole)

    def _tell_faults(self, happen: Callable[[Block], None], block_ids: Sequence[int]) -> None:
        if isinstance(self._faults, NoFaults):
            return
        for block_id in block_ids:
            with self._pool.opened(block_id) as block:
                happen(block)


def translated(owner: str, error: Exception) -> TransferError:
    """An error of a line as a fetch tells it."""
    if isinstance(error, Refused):
        known = ERRORS.get(error.reason)
        return known(str(error)) if known else PeerLost(f"{owner} refuses: {error}")
    if isinstance(error, TimeoutError):
        return PeerLost(f"{owner} is gone: it has not answered for {PROGRESS_S:g} s")
    return PeerLost(f"{owner} is gone: {error}")


LINE_ERRORS = (OSError, BadFrame, PairBroken, Refused)
"""All that a line raises."""
