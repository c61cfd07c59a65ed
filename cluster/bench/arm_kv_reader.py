"""The reader's process: fetches the owner's blocks into a pool of its own, beside plain copies of as many bytes."""

import gc
from contextlib import nullcontext

from cluster.bench.arm_kv_owner import ATTEMPT, GENERATION, OWNER, READER, pool_arguments, pool_shape
from cluster.bench.arm_server import serve, take_output
from cluster.bench.kv_blocks import Contents, Run, Runs, first_arms, stopped
from cluster.bench.kv_transports import make_transport
from cluster.bench.unverified import TRUSTED, unverified
from core.errors import TransferError
from core.ids import LayoutId
from core.kv import FetchTarget, KVHandle, SlabShape
from kv_transfer.digest import DIGEST_BYTES
from kv_transfer.slab import Slab
from kv_transfer.transport import Binding, Transport


def main() -> None:
    """Measures until the input ends."""
    output, args = take_output(), pool_arguments()
    shape = pool_shape(args)
    with Slab.anonymous(shape, READER) as own, Slab.anonymous(shape, "copied") as copied:
        reader = Reader(own, copied, LayoutId(args.layout))
        try:
            serve(output, {}, {"open": reader.open, "measure": reader.measure})
        finally:
            reader.close()


class Reader:
    """Owns: the transports into its pool; `copied` is what memcpy copies from, the same kind of memory as a pool."""

    def __init__(self, own: Slab, copied: Slab, layout: LayoutId) -> None:
        self._own = own
        self._layout = layout
        self._shape: SlabShape = own.shape
        self._contents = Contents(own.shape.layout.bytes_per_block)
        self._contents.fill(copied.view.blocks)
        self._copied, self._target = copied.view.blocks.reshape(-1), own.view.blocks.reshape(-1)
        self._runs, self._copies = Runs(own.shape.num_blocks), Runs(own.shape.num_blocks)
        self._transports: dict[str, Transport] = {}
        self._digests: tuple[bytes, ...] = ()

    def open(self, bindings: dict[str, str], digests: str, token: str) -> dict[str, object]:
        """Bind the owner by each transport, and fetch its whole pool once: then no page is new to either side.

        Tells which of them failed, and how.
        """
        data = bytes.fromhex(digests)
        self._digests = tuple(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))
        failed = {}
        for name, binding in bindings.items():
            try:
                self._bind(name, Binding.unpack(bytes.fromhex(binding)), bytes.fromhex(token))
            except TransferError as error:
                failed[name] = f"{type(error).__name__}: {error}"
        self._copy(self._copies.next(self._shape.num_blocks, False))
        gc.collect()
        gc.freeze()  # what lives for the whole run is not looked through again while something is measured
        return {"lost": failed}

    def _bind(self, name: str, owner: Binding, token: bytes) -> None:
        made = make_transport(name, READER, self._layout, self._own, token)
        self._transports[name] = made
        made.bind(owner)
        self._fetch(name, self._runs.next(self._shape.num_blocks, False), True)

    def measure(
        self, transport: str, blocks: int, scattered: bool, verified: bool, times: int, turn: int
    ) -> dict[str, object]:
        """Seconds of so many fetches and of as many copies, in turn."""
        fetches, copies = list[float](), list[float]()
        for copy_first in first_arms(times, turn):
            if copy_first:
                copies.append(self._copy(self._copies.next(blocks, False)))
            run = self._runs.next(blocks, scattered)
            fetches.append(self._fetch(transport, run, verified))
            self._contents.check(self._own.view.blocks, run)
            if not copy_first:
                copies.append(self._copy(self._copies.next(blocks, False)))
        return {"seconds": fetches, "copy": copies}

    def close(self) -> None:
        """Let go of the owner."""
        for each in self._transports.values():
            each.close()

    def _fetch(self, name: str, run: Run, is_verified: bool) -> float:
        """Handle and target are there before the clock starts: a node has them from messages and from its machine."""
        num = len(run.sources)
        digests = tuple(self._digests[block] for block in run.sources) if is_verified else (TRUSTED,) * num
        sources, generations = tuple(run.sources), (GENERATION,) * num
        handle = KVHandle(ATTEMPT, OWNER, self._layout, 0, sources, generations, digests)
        into = FetchTarget(tuple(run.targets), generations)
        transport = self._transports[name]
        with nullcontext() if is_verified else unverified():
            return stopped(lambda: transport.fetch(handle, into))

    def _copy(self, run: Run) -> float:
        size = self._shape.layout.bytes_per_block
        part = slice(run.sources[0] * size, (run.sources[-1] + 1) * size)
        source, target = self._copied[part], self._target[part]

        def copy() -> None:
            target[:] = source

        return stopped(copy)


if __name__ == "__main__":
    main()
