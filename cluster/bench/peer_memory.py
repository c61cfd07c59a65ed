"""Both sides of a peer's measurement: numpy memory as its users have it, and the same loop as ours.

Runs in the peer's environment: numpy and the standard library only.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Protocol

from cluster.bench.arm_server import serve, take_output
from cluster.bench.kv_blocks import Bytes, Contents, Run, Runs, first_arms, stopped, touched


class OwnerSide(Protocol):
    """Makes memory readable."""

    def told(self) -> dict[str, object]:
        """What a reader needs."""

    def attend(self, on: bool) -> dict[str, object]:
        """Whether a reader reads now."""


class ReaderSide(Protocol):
    """Reads another process's memory."""

    def bind(self, **told: object) -> None:
        """Learn where the owner's memory is."""

    def prepare(self, run: Run) -> Callable[[], None]:
        """What moves these blocks; whatever a user does once for a peer is done before."""


class Measure:
    """The reader's answers. Owns: what memcpy copies from, and which blocks come next."""

    def __init__(self, side: ReaderSide, blocks: Bytes) -> None:
        self._side = side
        self._blocks = blocks
        self._contents = Contents(blocks.shape[1])
        self._copied = touched(*blocks.shape)
        self._runs, self._copies = Runs(len(blocks)), Runs(len(blocks))

    def open(self, **told: object) -> dict[str, object]:
        """Bind the owner, and read all of it once."""
        self._side.bind(**told)
        self._read(self._runs.next(len(self._blocks), False))
        return {}

    def measure(self, blocks: int, scattered: bool, times: int, turn: int) -> dict[str, object]:
        """Seconds of so many transfers and of as many copies, in turn."""
        reads, copies = list[float](), list[float]()
        for copy_first in first_arms(times, turn):
            if copy_first:
                copies.append(self._copy(self._copies.next(blocks, False)))
            reads.append(self._read(self._runs.next(blocks, scattered)))
            if not copy_first:
                copies.append(self._copy(self._copies.next(blocks, False)))
        return {"seconds": reads, "copy": copies}

    def _read(self, run: Run) -> float:
        seconds = stopped(self._side.prepare(run))
        self._contents.check(self._blocks, run)
        return seconds

    def _copy(self, run: Run) -> float:
        part = slice(run.sources[0], run.sources[-1] + 1)
        source, target = self._copied[part].reshape(-1), self._blocks[part].reshape(-1)

        def copy() -> None:
            target[:] = source

        return stopped(copy)


def serve_peer(
    facts: Callable[[], dict[str, object]], own: Callable[[Bytes], OwnerSide], read: Callable[[Bytes], ReaderSide]
) -> None:
    """The whole of a peer's arm: `owner` or `reader`, as the arguments say."""
    output, args = take_output(), _arguments()
    blocks = touched(args.blocks, args.bytes_per_block)
    if args.side == "owner":
        Contents(args.bytes_per_block).fill(blocks)
        owner = own(blocks)
        serve(output, facts(), {"told": owner.told, "attend": owner.attend})
    else:
        measure = Measure(read(blocks), blocks)
        serve(output, facts(), {"open": measure.open, "measure": measure.measure})
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("owner", "reader"))
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--bytes-per-block", type=int, required=True)
    return parser.parse_args()
