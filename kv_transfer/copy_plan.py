"""Which bytes go where, for any two pools whose KV can be mapped onto each other. Pure: block ids in, ranges out.

Everything is planned by token positions: a side says which tokens its table covers, and the plan pairs the places of
equal tokens and equal heads. So block sizes may differ, and a tensor-parallel rank takes the slice of heads it holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.errors import LayoutMismatch
from core.kv import DTYPE_BYTES, KVLayout, SlabShape

MAX_PIECE_BYTES = 16 << 20


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


def plan_copy(source: Side, target: Side, tokens: range, max_piece_bytes: int = MAX_PIECE_BYTES) -> tuple[Piece, ...]:
    """The copies that bring the KV of `tokens` from `source` to `target`: adjacent ones joined, none above the limit.

    Only heads that both sides hold are copied; a target that needs more takes them from the other ranks.
    Raises: LayoutMismatch when the sides cannot be mapped, or one of them does not cover `tokens`.
    """
    heads = _common_heads(source.shape.layout, target.shape.layout)
    for side, name in ((source, "source"), (target, "target")):
        check_ids(side.block_ids, side.shape.num_blocks, name)
        if tokens and not (tokens.start in side.tokens and tokens[-1] in side.tokens):
            raise LayoutMismatch(f"the {name} covers tokens {side.tokens}, not {tokens}")
    pieces = (piece for span in _spans(source, target, tokens) for piece in _span_pieces(source, target, span, heads))
    return tuple(_split(_joined(pieces), max_piece_bytes))


def _common_heads(source: KVLayout, target: KVLayout) -> range:
    """The heads, counted over all ranks, that both sides hold."""
    for field in ("num_layers", "head_dim", "dtype"):
        if getattr(source, field) != getattr(target, field):
            raise LayoutMismatch(
                f"{field}: the source has {getattr(source, field)}, the target {getattr(target, field)}"
            )
    if source.num_kv_heads * source.tp_size != target.num_kv_heads * target.tp_size:
        raise LayoutMismatch("the two sides do not divide the same number of KV heads between their ranks")
    ours, theirs = _heads_of(source), _heads_of(target)
    common = range(max(ours.start, theirs.start), min(ours.stop, theirs.stop))
    if not common:
        raise LayoutMismatch(
            f"rank {source.tp_rank} of the source and rank {target.tp_rank} of the target share no head"
        )
    return common


def _heads_of(layout: KVLayout) -> range:
    return range(layout.tp_rank * layout.num_kv_heads, (layout.tp_rank + 1) * layout.num_kv_heads)


def _spans(source: Side, target: Side, tokens: range) -> Iterator[range]:
    """`tokens`, cut wherever a block ends on either side."""
    sizes = source.shape.layout.block_size, target.shape.layout.block_size
    start = tokens.start
    while start < tokens.stop:
        end = min(tokens.stop, *((start // size + 1) * size for size in sizes))
        yield range(start, end)
        start = end


def _span_pieces(source: Side, target: Side, span: range, heads: range) -> Iterator[Piece]:
    """One piece for a span of whole blocks, because heads are the outermost axis; else one per head, layer, k and v."""
    layout = source.shape.layout
    if len(span) == layout.block_size == target.shape.layout.block_size:
        num_bytes = len(heads) * layout.bytes_per_block // layout.num_kv_heads
        yield Piece(_offset(source, span.start, heads.start, 0), _offset(target, span.start, heads.start, 0), num_bytes)
        return
    num_bytes = len(span) * layout.head_dim * DTYPE_BYTES[layout.dtype]
    for head in heads:
        for plane in range(2 * layout.num_layers):
            yield Piece(_offset(source, span.start, head, plane), _offset(target, span.start, head, plane), num_bytes)


def _offset(side: Side, token: int, head: int, plane: int) -> int:
    """Where a token's vector lies; `plane` counts layers and k/v together, as the axes `[layer][k/v]` do."""
    layout = side.shape.layout
    place, row = divmod(token, layout.block_size)
    block = side.block_ids[place - side.first_block]
    planes = (head - _heads_of(layout).start) * 2 * layout.num_layers + plane
    vector = planes * layout.block_size + row
    return side.shape.block_offset(block) + vector * layout.head_dim * DTYPE_BYTES[layout.dtype]


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
