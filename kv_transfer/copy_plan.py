"""Which KV goes where, for any two pools whose KV can be mapped onto each other. Pure: block ids in, places out.

Everything is planned by token positions: a side says which tokens its table covers, and the plan pairs the places of
equal tokens and equal heads. So block sizes may differ, and a tensor-parallel rank takes the slice of heads it holds.
A plan in spans says which numbers go where, whatever type either side keeps them in; a plan in pieces says which bytes,
and so needs one type.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.errors import LayoutMismatch
from core.kv import DTYPE_BYTES, KVLayout, SlabShape

MAX_PIECE_BYTES = 16 << 20

CONVERTED = frozenset({"float32", "float16", "bfloat16"})
"""Types that are converted into each other; any other moves only as it is."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side's pool and the run of a table in it: `block_ids[0]` has place `first_block` in the table."""

    shape: SlabShape
    first_block: int
    block_ids: tuple[int, ...]

    @property
    def tokens(self) -> range:
        """The token positions that these blocks hold."""
        size = self.shape.layout.block_size
        return range(self.first_block * size, (self.first_block + len(self.block_ids)) * size)


@dataclass(frozen=True, slots=True)
class Place:
    """Some heads and tokens of one block; both are counted from the block's own first one."""

    block: int
    heads: range
    rows: range


@dataclass(frozen=True, slots=True)
class Span:
    """The KV of a few tokens that lie in one block on each side: two places with equal numbers of heads and rows."""

    source: Place
    target: Place


@dataclass(frozen=True, slots=True)
class Piece:
    """One contiguous copy, in bytes from the start of each side's slab."""

    source_offset: int
    target_offset: int
    num_bytes: int


def check_ids(block_ids: Sequence[int], num_blocks: int, side: str) -> None:
    """Raises LayoutMismatch for an id outside the pool, and for one that is named twice."""
    if not block_ids:
        return
    if min(block_ids) < 0 or max(block_ids) >= num_blocks:
        outside = next(block for block in block_ids if not 0 <= block < num_blocks)
        raise LayoutMismatch(f"{side} block {outside} is not in a pool of {num_blocks}")
    if len(set(block_ids)) != len(block_ids):
        raise LayoutMismatch(f"a {side} block is named twice")


def check_maps(source: KVLayout, target: KVLayout) -> range:
    """The heads, counted over all ranks, that both sides hold. Raises LayoutMismatch unless KV can be mapped."""
    for field in ("num_layers", "head_dim"):
        if getattr(source, field) != getattr(target, field):
            raise LayoutMismatch(
                f"{field}: the source has {getattr(source, field)}, the target {getattr(target, field)}"
            )
    if source.dtype != target.dtype and not {source.dtype, target.dtype} <= CONVERTED:
        raise LayoutMismatch(f"dtype: {source.dtype} is not converted to {target.dtype}")
    if source.num_kv_heads * source.tp_size != target.num_kv_heads * target.tp_size:
        raise LayoutMismatch("the two sides do not divide the same number of KV heads between their ranks")
    ours, theirs = _heads_of(source), _heads_of(target)
    common = range(max(ours.start, theirs.start), min(ours.stop, theirs.stop))
    if not common:
        raise LayoutMismatch(
            f"rank {source.tp_rank} of the source and rank {target.tp_rank} of the target share no head"
        )
    return common


def plan_spans(source: Side, target: Side, tokens: range) -> tuple[Span, ...]:
    """The places that bring the KV of `tokens` from `source` to `target`, in the order of the tokens.

    Only heads that both sides hold are named; a target that needs more takes them from the other ranks.
    Raises: LayoutMismatch when the sides cannot be mapped, or one of them does not cover `tokens`.
    """
    heads = check_maps(source.shape.layout, target.shape.layout)
    for side, name in ((source, "source"), (target, "target")):
        check_ids(side.block_ids, side.shape.num_blocks, name)
        if tokens and not (tokens.start in side.tokens and tokens[-1] in side.tokens):
            raise LayoutMismatch(f"the {name} covers tokens {side.tokens}, not {tokens}")
    cut = _cut(source, target, tokens)
    return tuple(Span(_place(source, span, heads), _place(target, span, heads)) for span in cut)


def plan_rest(source: KVLayout, target: Side, end: int) -> tuple[Place, ...]:
    """Where the target's last block lies beyond token `end`, in the heads that both sides hold: 0 places or 1."""
    size = target.shape.layout.block_size
    if end % size == 0:
        return ()
    block = _place(target, range(end, (end // size + 1) * size), check_maps(source, target.shape.layout))
    return (block,)


def plan_copy(source: Side, target: Side, tokens: range, max_piece_bytes: int = MAX_PIECE_BYTES) -> tuple[Piece, ...]:
    """The same in bytes, for sides of one type: adjacent ones joined, none above the limit. Raises as `plan_spans`."""
    types = source.shape.layout.dtype, target.shape.layout.dtype
    if types[0] != types[1]:
        raise LayoutMismatch(f"dtype: the source has {types[0]}, the target {types[1]}; bytes are not converted")
    spans = plan_spans(source, target, tokens)
    pieces = (piece for span in spans for piece in _span_pieces(source.shape, target.shape, span))
    return tuple(_split(_joined(pieces), max_piece_bytes))


def _heads_of(layout: KVLayout) -> range:
    return range(layout.tp_rank * layout.num_kv_heads, (layout.tp_rank + 1) * layout.num_kv_heads)


def _cut(source: Side, target: Side, tokens: range) -> Iterator[range]:
    """`tokens`, cut wherever a block ends on either side."""
    sizes = source.shape.layout.block_size, target.shape.layout.block_size
    start = tokens.start
    while start < tokens.stop:
        end = min(tokens.stop, *((start // size + 1) * size for size in sizes))
        yield range(start, end)
        start = end


def _place(side: Side, tokens: range, heads: range) -> Place:
    """Where tokens of one block lie; `heads` are counted over all ranks."""
    layout = side.shape.layout
    place, row = divmod(tokens.start, layout.block_size)
    first = _heads_of(layout).start
    block = side.block_ids[place - side.first_block]
    return Place(block, range(heads.start - first, heads.stop - first), range(row, row + len(tokens)))


def _span_pieces(source: SlabShape, target: SlabShape, span: Span) -> Iterator[Piece]:
    """One piece for a span of whole blocks, because heads are the outermost axis; else one per head, layer, k and v."""
    layout, num_rows = source.layout, len(span.source.rows)
    if num_rows == layout.block_size == target.layout.block_size:
        num_bytes = len(span.source.heads) * layout.bytes_per_block // layout.num_kv_heads
        yield Piece(_offset(source, span.source, 0, 0), _offset(target, span.target, 0, 0), num_bytes)
        return
    num_bytes = num_rows * layout.head_dim * DTYPE_BYTES[layout.dtype]
    for head in range(len(span.source.heads)):
        for plane in range(2 * layout.num_layers):
            yield Piece(_offset(source, span.source, head, plane), _offset(target, span.target, head, plane), num_bytes)


def _offset(shape: SlabShape, place: Place, head: int, plane: int) -> int:
    """Where a place's first vector lies; `plane` counts layers and k/v together, as the axes `[layer][k/v]` do."""
    layout = shape.layout
    planes = place.heads[head] * 2 * layout.num_layers + plane
    vector = planes * layout.block_size + place.rows.start
    return shape.block_offset(place.block) + vector * layout.head_dim * DTYPE_BYTES[layout.dtype]


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    last: Piece | None = None
    for piece in pieces:
        if last and _touches(last, piece):
            last = Piece(last.source_offset, last.target_offset, last.num_bytes + piece.num_bytes)
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


def _touches(last: Piece, piece: Piece) -> bool:
    ahead = last.num_bytes
    return piece.source_offset == last.source_offset + ahead and piece.target_offset == last.target_offset + ahead


def _split(pieces: Iterator[Piece], limit: int) -> Iterator[Piece]:
    for piece in pieces:
        for start in range(0, piece.num_bytes, limit):
            length = min(limit, piece.num_bytes - start)
            yield Piece(piece.source_offset + start, piece.target_offset + start, length)
