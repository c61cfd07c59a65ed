"""Paged attention through torch, for every device and type: gathered groups of single lines, one gather per chunk.

Pages are gathered into a scratch that stays in cache. Measured on one core (4 KV heads of 32, two query heads each):
32 rows of 512 tokens took 3.4 ms a layer in groups of 2 MiB, 4.0 in groups of 1 MiB, and up to 4.9 all at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.lines import Chunk, Lines
from engine.memory import KVMemory, Part

_GROUP_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
"""Gathered keys of one group of single lines, at most: on a CPU what stays in cache."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Single lines `start` to `end` that are attended together.

    Shapes: `pages` flat [lines * kv_heads * blocks]; `mask` [lines * kv_heads, 1, tokens], 0 or -inf.
    """

    start: int
    end: int
    pages: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class _ChunkPlan:
    """Where a chunk's keys lie: `num_tokens` of them from the start of `pages`.

    Shapes: `pages` flat [kv_heads * blocks]; `mask` [lines, num_tokens], or None where `is_causal` says all.
    """

    chunk: Chunk
    num_tokens: int
    pages: Tensor
    mask: Tensor | None
    is_causal: bool


class TorchAttention:
    """Attention over the pages of a KV memory.

    Owns: the scratch that pages are gathered into, and the indices and masks of the lines that it saw last, which all
    layers of a step share.
    """

    def __init__(self, memory: KVMemory) -> None:
        self._memory = memory
        self._layout = memory.shape.layout
        page_bytes = self._layout.block_size * self._layout.head_dim * memory.blocks.element_size()
        self._max_grouped_pages = max(1, _GROUP_BYTES.get(memory.device.type, 2 << 20) // page_bytes)
        self._scratch = torch.empty(0)
        self._planned: Lines | None = None
        self._groups: dict[tuple[int, int], tuple[_Group, ...]] = {}
        self._chunks: dict[int, tuple[_ChunkPlan, ...]] = {}

    def decode(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float) -> Tensor:
        """Attend the first lines one by one. Shapes: [n, heads, head_dim] -> the same."""
        self._turn_to(lines)
        key = (len(queries), window)
        if key not in self._groups:
            self._groups[key] = self._plan_groups(lines, *key)
        out = queries.new_empty(queries.shape)
        for group in self._groups[key]:
            self._attend_group(layer, queries[group.start : group.end], group, scale, out[group.start : group.end])
        return out

    def prefill(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float, out: Tensor) -> None:
        """Attend the chunks, into their lines of `out`. Shapes: both [N, heads, head_dim]."""
        self._turn_to(lines)
        if window not in self._chunks:
            self._chunks[window] = tuple(self._plan_chunk(lines, chunk, window) for chunk in lines.chunks)
        for plan in self._chunks[window]:
            start, end = plan.chunk.start, plan.chunk.end
            out[start:end] = self._attend_chunk(layer, queries[start:end], plan, scale)

    # ── once a step ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _turn_to(self, lines: Lines) -> None:
        if self._planned is not lines:
            self._planned = lines
            self._groups, self._chunks = {}, {}

    def _plan_groups(self, lines: Lines, num_lines: int, window: int) -> tuple[_Group, ...]:
        size, positions = self._layout.block_size, lines.positions[:num_lines]
        firsts = (positions - (window - 1)).clamp_(min=0) // size if window else torch.zeros_like(positions)
        widths = self._widths(lines, positions // size - firsts + 1, window)
        groups, start = [], 0
        while start < num_lines:
            end = start + self._num_grouped(widths[start:])
            width = max(widths[start:end])
            columns = firsts[start:end, None] + torch.arange(width, device=positions.device)
            groups.append(self._group(lines, start, end, columns, window))
            start = end
        return tuple(groups)

    def _widths(self, lines: Lines, num_blocks: Tensor, window: int) -> list[int]:
        """Blocks that each line reads, or on a device that the host would have to wait for, a bound of them."""
        if num_blocks.device.type == "cpu":
            return num_blocks.tolist()
        size = self._layout.block_size
        most = -(-lines.max_context // size)
        return [min(most, (window - 2) // size + 2) if window else most] * len(num_blocks)

    def _num_grouped(self, widths: Sequence[int]) -> int:
        """How many lines from the first on fit the scratch when padded to the widest of them; at least one."""
        widest = 0
        for count, width in enumerate(widths):
            widest = max(widest, width)
            if count and widest * (count + 1) * self._layout.num_kv_heads > self._max_grouped_pages:
                return count
        return len(widths)

    def _group(self, lines: Lines, start: int, end: int, columns: Tensor, window: int) -> _Group:
        held = columns.clamp(max=lines.tables.shape[1] - 1)
        pages = self._memory.page_rows(lines.tables[lines.rows[start:end, None], held]).flatten()
        self._reserve(len(pages))
        size, positions = self._layout.block_size, lines.positions[start:end, None]
        places = (columns[:, :, None] * size + torch.arange(size, device=columns.device)).flatten(1)
        mask = self._mask(places, positions, window)
        return _Group(start, end, pages, mask.repeat_interleave(self._layout.num_kv_heads, 0)[:, None])

    def _plan_chunk(self, lines: Lines, chunk: Chunk, window: int) -> _ChunkPlan:
        size, end = self._layout.block_size, chunk.prefix + chunk.end - chunk.start
        first = max(0, chunk.prefix - window + 1) // size if window else 0
        pages = self._memory.page_rows(lines.tables[chunk.row, first : -(-end // size)][None]).flatten()
        self._reserve(2 * len(pages))
        if chunk.prefix == 0 and (not window or window >= end):
            return _ChunkPlan(chunk, end, pages, None, is_causal=True)
        places = torch.arange(first * size, end, device=pages.device)
        mask = self._mask(places, lines.positions[chunk.start : chunk.end, None], window)
        return _ChunkPlan(chunk, end - first * size, pages, mask, is_causal=False)

    def _mask(self, places: Tensor, positions: Tensor, window: int) -> Tensor:
        """0 where a line sees the place, else -inf. Shapes: [lines or none, tokens] and [lines, 1]."""
        hidden = places > positions
        if window:
            hidden |= places <= positions - window
        return torch.zeros(hidden.shape, dtype=self._memory.dtype, device=hidden.device).masked_fill_(
            hidden, -torch.inf
        )

    # ── once a layer ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _attend_group(self, layer: int, queries: Tensor, group: _Group, scale: float, out: Tensor) -> None:
        """The query heads of one KV head are the rows of one small matrix product, so KV is never repeated.

        Keys and values take the same scratch in turn: half the footprint in cache.
        """
        kv_heads, dim = self._layout.num_kv_heads, self._layout.head_dim
        shape = ((group.end - group.start) * kv_heads, queries.shape[1] // kv_heads, dim)
        keys = self._gather(layer, Part.KEYS, group.pages, shape[0])
        mask = group.mask.expand(-1, shape[1], -1)
        scores = torch.baddbmm(mask, queries.reshape(shape), keys.transpose(1, 2), alpha=scale)
        values = self._gather(layer, Part.VALUES, group.pages, shape[0])
        torch.bmm(scores.softmax(-1), values, out=out.view(shape))

    def _attend_chunk(self, layer: int, queries: Tensor, plan: _ChunkPlan, scale: float) -> Tensor:
        num_heads, end = self._layout.num_kv_heads, plan.num_tokens
        keys = self._gather(layer, Part.KEYS, plan.pages, num_heads)
        values = self._gather(layer, Part.VALUES, plan.pages, num_heads, after=len(plan.pages))
        attended = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None, :, :end],
            values[None, :, :end],
            attn_mask=plan.mask,
            is_causal=plan.is_causal,
            scale=scale,
            enable_gqa=queries.shape[1] > num_heads,
        )
        return attended[0].transpose(0, 1)

    def _gather(self, layer: int, part: Part, pages: Tensor, lines: int, after: int = 0) -> Tensor:
        """Pages in the scratch, `after` pages from its start. Shapes: [lines, tokens, head_dim]."""
        held = self._scratch[after : after + len(pages)]
        self._memory.gather(layer, part, pages, held)
        return held.view(lines, -1, self._layout.head_dim)

    def _reserve(self, num_pages: int) -> None:
        """Make the scratch at least this large."""
        if num_pages > len(self._scratch):
            size = self._layout.block_size * self._layout.head_dim
            self._scratch = torch.empty(num_pages, size, dtype=self._memory.dtype, device=self._memory.device)
