"""Brings blocks into a pool that is laid out otherwise: other block size, other slice of heads, other type.

The digest is of the owner's bytes, so these are read into memory of our own first, proven there as always, and only
then carried to their places: what was not proven is never converted, and a lender's later writes do not reach us.

Rounding: float16 and bfloat16 become float32 exactly. Towards a narrower type numbers are rounded to nearest, ties to
even; what is too large becomes infinity, as IEEE 754 has it, which the sampler finds; NaN stays NaN.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import LayoutMismatch
from core.kv import FetchTarget, KVHandle, KVLayout, SlabShape
from kv_transfer.block_copy import BlockCopy
from kv_transfer.copy_plan import Place, Side, Span, check_ids, plan_rest, plan_spans
from kv_transfer.faults import Faults
from kv_transfer.peers import Peer
from kv_transfer.slab import Slab, SlabView

BOUNCE_BYTES = 1 << 20
"""Read before anything is carried on: it should still be in a cache then. One block, where a block is larger."""

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.generic]

_STORED = {"float16": np.float16, "float32": np.float32, "float64": np.float64, "bfloat16": np.uint16}
"""numpy has no bfloat16: its bits are kept, and widened for arithmetic."""


def fetch_blocks(handle: KVHandle, into: FetchTarget, peer: Peer, own: Slab, faults: Faults) -> int:
    """Copy lent blocks into ours, whatever the two layouts are. Returns the bytes read; raises as `Transport.fetch`."""
    if peer.binding.shape.layout == own.shape.layout:
        return BlockCopy(handle, into, peer, own.view, faults).run()
    return MappedCopy(handle, into, peer, own, faults).run()


@dataclass(frozen=True, slots=True)
class MappedCopy:
    """One fetch between pools of different layouts.

    `into` names those of our blocks that cover the handle's tokens. The first token must be the first of a block of
    ours, so that each of our blocks is filled by one fetch (of each rank); what the last one has beyond the handle's
    tokens is cleared.
    """

    handle: KVHandle
    into: FetchTarget
    peer: Peer
    own: Slab
    faults: Faults

    def run(self) -> int:
        """Copy all of the handle's blocks; returns the bytes read."""
        handle, theirs = self.handle, self.peer.binding.shape
        tokens = range(handle.first_block * theirs.layout.block_size, handle.end_block * theirs.layout.block_size)
        if not len(handle.block_ids) == len(handle.generations) == len(handle.digests):
            raise LayoutMismatch(f"{handle.attempt}: the columns of its handle differ in length")
        target = self._target(tokens)
        check_ids(handle.block_ids, theirs.num_blocks, "source")
        check_ids(target.block_ids, self.own.shape.num_blocks, "target")
        self.own.view.generations[list(target.block_ids)] = self.into.generations
        moved = sum(self._carry_batch(columns, target) for columns in self._batches())
        if handle.block_ids:
            clear(plan_rest(theirs.layout, target, tokens.stop), self.own.view.blocks, self.own.shape.layout)
        return moved

    def _target(self, tokens: range) -> Side:
        size = self.own.shape.layout.block_size
        if tokens and tokens.start % size:
            raise LayoutMismatch(
                f"{self.handle.attempt}: token {tokens.start} is within a block of ours, not its first"
            )
        first, end = tokens.start // size, -(-tokens.stop // size)
        num_blocks = end - first if tokens else 0
        if not len(self.into.block_ids) == len(self.into.generations) == num_blocks:
            named = len(self.into.block_ids)
            raise LayoutMismatch(
                f"{self.handle.attempt}: the columns of its handle and target differ in length: "
                f"{len(tokens)} tokens need {num_blocks} blocks of {size}, {named} are named"
            )
        return Side(self.own.shape, first, self.into.block_ids)

    def _batches(self) -> Iterator[range]:
        size = max(1, BOUNCE_BYTES // self.peer.binding.shape.layout.bytes_per_block)
        num_blocks = len(self.handle.block_ids)
        return (range(start, min(start + size, num_blocks)) for start in range(0, num_blocks, size))

    def _carry_batch(self, columns: range, target: Side) -> int:
        part = self.handle.take(tuple(columns))
        layout = self.peer.binding.shape.layout
        bounce = SlabView(np.zeros(len(columns), np.uint64), np.empty((len(columns), layout.bytes_per_block), np.uint8))
        places = tuple(range(len(columns)))
        read = self.read(part, FetchTarget(places, (0,) * len(places)), bounce)
        source = Side(SlabShape(layout, len(columns)), part.first_block, places)
        spans = plan_spans(source, target, source.tokens)
        carry(spans, bounce.blocks, layout, self.own.view.blocks, self.own.shape.layout)
        return read

    def read(self, part: KVHandle, into: FetchTarget, bounce: SlabView) -> int:
        """Bring some blocks into memory of our own, and prove them there; returns the bytes read."""
        return BlockCopy(part, into, self.peer, bounce, self.faults).run()


def carry(spans: Sequence[Span], source: Bytes, from_layout: KVLayout, target: Bytes, to_layout: KVLayout) -> None:
    """Carry out a plan. Shapes: `source` and `target` are whole pools, [blocks, bytes_per_block]."""
    theirs, ours = _numbers(source, from_layout), _numbers(target, to_layout)
    for span in spans:
        _convert(_at(theirs, span.source), from_layout.dtype, _at(ours, span.target), to_layout.dtype)


def clear(places: Sequence[Place], target: Bytes, layout: KVLayout) -> None:
    """Put zeros where a plan brings nothing, so that nobody reads what an earlier owner left, which may be NaN."""
    numbers = _numbers(target, layout)
    for place in places:
        _at(numbers, place)[...] = 0


def _numbers(blocks: Bytes, layout: KVLayout) -> Numbers:
    """Shapes: [blocks, bytes_per_block] -> [blocks, kv_heads, layers * 2, block_size, head_dim]."""
    axes = (layout.num_kv_heads, 2 * layout.num_layers, layout.block_size, layout.head_dim)
    return blocks.view(_STORED[layout.dtype]).reshape(len(blocks), *axes)


def _at(numbers: Numbers, place: Place) -> Numbers:
    heads, rows = place.heads, place.rows
    part: Numbers = numbers[place.block, heads.start : heads.stop, :, rows.start : rows.stop]
    return part


def _convert(source: Numbers, from_dtype: str, target: Numbers, to_dtype: str) -> None:
    if from_dtype == to_dtype:
        target[...] = source
    elif to_dtype == "bfloat16":
        target[...] = to_bfloat16(source.astype(np.float32))
    else:
        wide = from_bfloat16(source) if from_dtype == "bfloat16" else source
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target, wide, casting="same_kind")


def from_bfloat16(bits: Numbers) -> npt.NDArray[np.float32]:
    """Exact. Shapes: u16 -> f32, alike."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even. Shapes: f32 -> u16, alike."""
    bits = numbers.view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    with np.errstate(over="ignore"):
        rounded = (bits + half) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(numbers), quiet, rounded).astype(np.uint16)
