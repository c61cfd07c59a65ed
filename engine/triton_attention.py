"""Triton kernels for attention over paged KV: split decode with its combination, and prefill with a prefix.

Decode reads every KV byte once and does little with it, so it is built to keep bytes in flight: the query heads of a KV
head share one program, KV tiles are fetched some iterations ahead into shared memory, and long contexts are split so
that few lines occupy all multiprocessors too. The query heads are padded to 16 rows, the least that a tensor core
takes; the waste is arithmetic, of which decode has plenty. Prefill packs tokens and query heads of a KV head into the
rows of one tile, so that short chunks fill it and KV is fetched once a group.

Softmax runs in base 2: scores come multiplied by log2(e). Source: Dao 2023 (FlashAttention-2), Dao et al. 2023
(Flash-Decoding).
"""

import triton.language as tl

from engine.triton_kernels import kernel


@kernel()
def first_seen(end: tl.tensor, window: tl.tensor) -> tl.tensor:
    """The first position that a line sees whose context ends at `end`; `window` 0 is everything."""
    return tl.where(window > 0, tl.maximum(end - window, 0), 0)


@kernel()
def split_length(
    num_tokens: tl.tensor, num_splits: tl.tensor, tile: tl.constexpr, min_tokens: tl.constexpr
) -> tl.tensor:
    """Tokens that each split takes, but for the last one that takes any: whole tiles, and not too few."""
    even = (num_tokens + num_splits - 1) // num_splits
    return tl.maximum((even + tile - 1) // tile * tile, min_tokens)


@kernel("layer", "window", "num_splits")
def decode_kernel(
    queries: tl.tensor,
    pages: tl.tensor,
    tables: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    weights: tl.tensor,
    table_width: tl.tensor,
    layer: tl.tensor,
    window: tl.tensor,
    num_splits: tl.tensor,
    scale: tl.tensor,
    num_kv_heads: tl.constexpr,
    num_layers: tl.constexpr,
    block_size: tl.constexpr,
    head_dim: tl.constexpr,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    padded_dim: tl.constexpr,
    tile: tl.constexpr,
    min_tokens: tl.constexpr,
    is_whole: tl.constexpr,
) -> None:
    """Program (line, KV head, split): its `group` query heads over its share of the line's context.

    `is_whole` says that there is one split, whose result is the line's. Otherwise `out` is what the share alone would
    give, and `weights` how much it counts: log2 of its sum of exponents. Splits beyond the context write nothing.
    Shapes: `queries` [n, num_kv_heads * group, head_dim]; `tables` [R, table_width]; `rows`, `positions` [n]; `out` is
    like `queries`, or float32 [n, num_kv_heads, num_splits, group, head_dim] with `weights` [n, num_kv_heads,
    num_splits, group]; `pages` [blocks, kv_heads, layers, 2, block_size, head_dim].
    """
    page: tl.constexpr = block_size * head_dim
    block_stride: tl.constexpr = num_kv_heads * num_layers * 2 * page
    line, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    last = tl.load(positions + line).to(tl.int32) + 1
    first = first_seen(last, window)
    length = split_length(last - first, num_splits, tile, min_tokens)
    start = first + split * length
    end = tl.minimum(start + length, last)
    if start >= end:
        return
    table = tables + tl.load(rows + line) * table_width
    keys = pages + (kv_head * num_layers + layer).to(tl.int64) * (2 * page)
    members, dims = tl.arange(0, padded_group)[:, None], tl.arange(0, padded_dim)[None, :]
    in_group, in_head = members < group, dims < head_dim
    query_places = (line * num_kv_heads + kv_head) * (group * head_dim) + members * head_dim + dims
    query = tl.load(queries + query_places, mask=in_group & in_head, other=0.0)
    most = tl.full((padded_group,), float("-inf"), tl.float32)
    total = tl.zeros((padded_group,), tl.float32)
    result = tl.zeros((padded_group, padded_dim), tl.float32)
    for at in tl.range(start, end, tile):
        tokens = at + tl.arange(0, tile)
        seen = tokens < end
        blocks = tl.load(table + tokens // block_size, mask=seen, other=0)
        places = (blocks * block_stride + tokens % block_size * head_dim)[:, None] + dims
        held = seen[:, None] & in_head
        key = tl.load(keys + places, mask=held, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        more = tl.maximum(most, tl.max(scores, 1))
        fade, shares = tl.exp2(most - more), tl.exp2(scores - more[:, None])
        value = tl.load(keys + page + places, mask=held, other=0.0)
        total = total * fade + tl.sum(shares, 1)
        result = result * fade[:, None] + tl.dot(shares.to(value.dtype), value, input_precision="ieee")
        most = more
    result /= total[:, None]
    if is_whole:
        tl.store(out + query_places, result.to(out.dtype.element_ty), mask=in_group & in_head)
    else:
        part = ((line * num_kv_heads + kv_head) * num_splits + split) * group
        member = tl.arange(0, padded_group)
        tl.store(out + (part + members) * head_dim + dims, result, mask=in_group & in_head)
        tl.store(weights + part + member, most + tl.log2(total), mask=member < group)


@kernel("window", "num_splits")
def combine_kernel(
    parts: tl.tensor,
    weights: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    window: tl.tensor,
    num_splits: tl.tensor,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    group: tl.constexpr,
    padded_dim: tl.constexpr,
    tile: tl.constexpr,
    min_tokens: tl.constexpr,
    num_together: tl.constexpr,
) -> None:
    """Program (line, query head): adds up the splits that `decode_kernel` wrote, `num_together` at a time.

    `tile` and `min_tokens` must be those of the decode kernel. Shapes: as there.
    """
    line, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    last = tl.load(positions + line).to(tl.int32) + 1
    num_tokens = last - first_seen(last, window)
    length = split_length(num_tokens, num_splits, tile, min_tokens)
    num_used = (num_tokens + length - 1) // length
    dims = tl.arange(0, padded_dim)[None, :]
    first_part = (line * num_kv_heads + head // group) * num_splits
    most = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    result = tl.zeros((padded_dim,), tl.float32)
    for at in tl.range(0, num_used, num_together):
        splits = at + tl.arange(0, num_together)
        used = splits < num_used
        places = (first_part + splits) * group + head % group
        weight = tl.load(weights + places, mask=used, other=float("-inf"))
        part = tl.load(parts + places[:, None] * head_dim + dims, mask=used[:, None] & (dims < head_dim), other=0.0)
        more = tl.maximum(most, tl.max(weight, 0))
        fade, shares = tl.exp2(most - more), tl.exp2(weight - more)
        total = total * fade + tl.sum(shares, 0)
        result = result * fade + tl.sum(part * shares[:, None], 0)
        most = more
    at = tl.arange(0, padded_dim)
    places = (line * num_kv_heads * group + head) * head_dim + at
    tl.store(out + places, (result / total).to(out.dtype.element_ty), mask=at < head_dim)


@kernel("layer", "window")
def prefill_kernel(
    queries: tl.tensor,
    pages: tl.tensor,
    tables: tl.tensor,
    tiles: tl.tensor,
    out: tl.tensor,
    table_width: tl.tensor,
    layer: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    num_kv_heads: tl.constexpr,
    num_layers: tl.constexpr,
    block_size: tl.constexpr,
    head_dim: tl.constexpr,
    group: tl.constexpr,
    padded_dim: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_tokens: tl.constexpr,
    is_windowed: tl.constexpr,
) -> None:
    """A program takes a tile of a chunk's lines, with the `group` query heads of a KV head, over their context.

    Neighbours take the same tile for all KV heads. Row r of a tile is query head r % group of line r // group. Tiles of
    KV that all lines see whole come first and need no mask; with a window all are masked.
    Shapes: `queries`, `out` [N, num_kv_heads * group, head_dim]; `tiles` int64 [T, 4]: first line, number of lines, row
    of `tables`, position of the first line; `pages` as in `decode_kernel`.
    """
    page: tl.constexpr = block_size * head_dim
    program = tl.program_id(0)
    kv_head, tile = program % num_kv_heads, tiles + program // num_kv_heads * 4
    first_line, num_lines = tl.load(tile), tl.load(tile + 1).to(tl.int32)
    table, first_position = tables + tl.load(tile + 2) * table_width, tl.load(tile + 3).to(tl.int32)
    keys = pages + (kv_head * num_layers + layer).to(tl.int64) * (2 * page)
    row, dims = tl.arange(0, tile_rows), tl.arange(0, padded_dim)[None, :]
    line_of, member = row // group, row % group
    position = first_position + line_of
    places = ((first_line + line_of) * num_kv_heads + kv_head) * (group * head_dim) + member * head_dim
    places = places[:, None] + dims
    held = (line_of < num_lines)[:, None] & (dims < head_dim)
    query = tl.load(queries + places, mask=held, other=0.0)
    most = tl.full((tile_rows,), float("-inf"), tl.float32)
    total = tl.zeros((tile_rows,), tl.float32)
    result = tl.zeros((tile_rows, padded_dim), tl.float32)
    end = first_position + num_lines
    start = first_seen(first_position + 1, window) // tile_tokens * tile_tokens
    masked_from = start
    if not is_windowed:
        masked_from = (first_position + 1) // tile_tokens * tile_tokens
        for at in tl.range(0, masked_from, tile_tokens):
            most, total, result = attend_tile(
                query, keys, table, position, at, end, window, scale, most, total, result,
                num_kv_heads, num_layers, block_size, head_dim, padded_dim, tile_tokens, False, False,
            )  # fmt: skip
    for at in tl.range(masked_from, end, tile_tokens):
        most, total, result = attend_tile(
            query, keys, table, position, at, end, window, scale, most, total, result,
            num_kv_heads, num_layers, block_size, head_dim, padded_dim, tile_tokens, True, is_windowed,
        )  # fmt: skip
    tl.store(out + places, (result / total[:, None]).to(out.dtype.element_ty), mask=held)


@kernel()
def attend_tile(
    query: tl.tensor,
    keys: tl.tensor,
    table: tl.tensor,
    position: tl.tensor,
    at: tl.tensor,
    end: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    result: tl.tensor,
    num_kv_heads: tl.constexpr,
    num_layers: tl.constexpr,
    block_size: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    tile_tokens: tl.constexpr,
    is_masked: tl.constexpr,
    is_windowed: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One step of the online softmax: KV of the positions from `at` on, none of them read from `end` on if masked."""
    page: tl.constexpr = block_size * head_dim
    block_stride: tl.constexpr = num_kv_heads * num_layers * 2 * page
    tokens, dims = at + tl.arange(0, tile_tokens), tl.arange(0, padded_dim)[None, :]
    exists = tokens < end
    if is_masked:
        blocks, held = tl.load(table + tokens // block_size, mask=exists, other=0), exists[:, None] & (dims < head_dim)
    else:
        blocks, held = tl.load(table + tokens // block_size), dims < head_dim
    places = (blocks * block_stride + tokens % block_size * head_dim)[:, None] + dims
    key = tl.load(keys + places, mask=held, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if is_masked:
        seen = tokens[None, :] <= position[:, None]
        if is_windowed:
            seen &= tokens[None, :] > position[:, None] - window
        scores = tl.where(seen, scores, float("-inf"))
    more = tl.maximum(most, tl.max(scores, 1))
    base = more
    if is_windowed:
        base = tl.where(more == float("-inf"), 0.0, more)  # a line may see nothing of its tile's first KV
    fade, shares = tl.exp2(most - base), tl.exp2(scores - base[:, None])
    value = tl.load(keys + page + places, mask=held, other=0.0)
    total = total * fade + tl.sum(shares, 1)
    result = result * fade[:, None] + tl.dot(shares.to(value.dtype), value, input_precision="ieee")
    return more, total, result
