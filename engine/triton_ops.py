"""The operators through Triton kernels, on CUDA in float32, float16 and bfloat16."""

from dataclasses import dataclass
from math import log2

import torch
import triton
from torch import Tensor

from core.errors import ConfigError
from engine.lines import Lines
from engine.memory import KVMemory
from engine.ops import Angles
from engine.triton_attention import combine_kernel, decode_kernel, prefill_kernel
from engine.triton_kernels import add_rms_norm_kernel, gated_kernel, rms_norm_kernel, store_kernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LOG2_E = log2(torch.e)
_PROGRAMS_PER_SM = 4
"""Decode programs at most, unless lines alone make more. On an H200, lines x KV heads x shares x context: 64 x 8 x 1 x
1,024 took 66 us and three shares of each 85; 8 x 8 x 8 x 8,192 took 69 us and 17 shares 77."""
_MIN_SPLIT_TOKENS = 128
"""Shorter splits would start and end more than they read: 128 tokens of 128 bf16 channels are 64 KiB."""
_MAX_SPLITS = 128
"""Combining reads 4 bytes a channel and split; this keeps it below 2 % of what splits of 512 tokens read."""
_STORE_ELEMENTS = 1024
_GATED_TILE = 1024


@dataclass(frozen=True, slots=True)
class Device:
    """What launches are laid out for: multiprocessors, and bytes of shared memory that a program may have."""

    num_sms: int
    shared_bytes: int

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """As the driver tells."""
        told = torch.cuda.get_device_properties(device)
        shared_bytes: int = told.shared_memory_per_block_optin  # type: ignore[attr-defined]  # not in torch's stubs
        return cls(told.multi_processor_count, shared_bytes)


H200 = Device(num_sms=132, shared_bytes=232_448)
"""An H100 has the same."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of the attention kernels' tiles: how many positions of KV, and for prefill how many rows of queries.

    Decode tiles are 32 KiB of keys and values in half precision, for two warps: of tiles of 32 to 128 positions, 2 to 8
    warps and 2 to 6 stages these were the fastest on an H200, or within 1 % of them, from 8 to 256 lines of 1,024 to
    8,192 tokens. One line alone likes tiles of 128 (6.7 us a layer instead of 7.6), which is 1 % of its step.
    Prefill has 128 rows, because each KV tile comes from the L2 cache once a program: with 64 rows of 128 channels,
    tensor cores at 600 TFLOP/s would ask it for 9 TB/s. Its other sizes are the largest that compile without spilled
    registers. Devices with less shared memory than an H200 (A100 163 KiB, L4 and L40S 99) get smaller ones.
    """

    decode_tokens: int
    decode_warps: int
    decode_stages: int
    prefill_rows: int
    prefill_tokens: int
    prefill_warps: int
    prefill_stages: int

    @classmethod
    def of(cls, padded_dim: int, element_bytes: int, device: Device) -> "Tiles":
        """For a head size, rounded up to a power of two."""
        if element_bytes == 4:  # plain arithmetic instead of tensor cores: exactness is asked for, not speed
            return cls(16, 4, 3, 32, 16, 4, 2)
        if device.shared_bytes < H200.shared_bytes:
            return cls(4096 // max(padded_dim, 64), 2, 3, 64, 4096 // max(padded_dim, 128), 4, 2)
        if padded_dim <= 64:
            return cls(128, 2, 3, 128, 64, 4, 3)
        if padded_dim <= 128:
            return cls(64, 2, 3, 128, 128, 8, 3)
        return cls(32, 2, 3, 128, 64, 8, 3)


class TritonOps:
    """The operators through Triton. Results depend on the number of lines in a step by rounding only.

    Queries and chunks' tiles are laid out per `Lines`; every other tensor is made per call, so that calls can be
    captured in a CUDA graph: within one, nothing depends on the host but the number of lines and `max_context`.
    Owns: the query tiles of the chunks that it saw last, which all layers of a step share.
    """

    def __init__(self, memory: KVMemory, device: Device | None = None) -> None:
        """`device` is asked of the driver where not given. Raises ConfigError for a type without kernels."""
        if memory.dtype not in DTYPES:
            raise ConfigError([f"there are no Triton kernels for {memory.dtype}; use one of {DTYPES}"])
        self._memory = memory
        self._device = Device.of(memory.device) if device is None else device
        layout = memory.shape.layout
        self._num_kv_heads, self._head_dim = layout.num_kv_heads, layout.head_dim
        self._padded_dim = max(16, triton.next_power_of_2(layout.head_dim))
        self._tiles = Tiles.of(self._padded_dim, memory.blocks.element_size(), self._device)
        self._layout = (layout.num_kv_heads, layout.num_layers, layout.block_size, layout.head_dim)
        self._planned: Lines | None = None
        self._query_tiles = torch.empty(0)

    # ── norms and the activation ─────────────────────────────────────────────────────────────────────────────────────

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        x = x.contiguous()
        out, size = torch.empty_like(x), x.shape[1]
        padded = triton.next_power_of_2(size)
        rms_norm_kernel[(len(x),)](x, weight, out, eps, size, padded, num_warps=_norm_warps(padded))
        return out

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        assert hidden.is_contiguous(), "the sum is written in place"
        delta = delta.contiguous()
        out, size = torch.empty_like(hidden), hidden.shape[1]
        padded = triton.next_power_of_2(size)
        grid, num_warps = (len(hidden),), _norm_warps(padded)
        add_rms_norm_kernel[grid](hidden, delta, weight, out, eps, size, padded, num_warps=num_warps)
        return out

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See `Ops`."""
        gate_up = gate_up.contiguous()
        size = gate_up.shape[1] // 2
        out = gate_up.new_empty((len(gate_up), size))
        grid = (len(gate_up), triton.cdiv(size, _GATED_TILE))
        gated_kernel[grid](gate_up, out, size, _GATED_TILE, activation == "gelu_tanh")
        return out

    # ── keys, values, attention ──────────────────────────────────────────────────────────────────────────────────────

    def store(
        self, layer: int, qkv: Tensor, lines: Lines, angles: Angles, qk_norm: Tensor | None, eps: float
    ) -> Tensor:
        """See `Ops`. Lines whose block is negative are stored nowhere."""
        qkv, cos, sin = qkv.contiguous(), angles[0].contiguous(), angles[1].contiguous()
        num_all = qkv.shape[1] // self._head_dim
        num_heads = num_all - 2 * self._num_kv_heads
        queries = qkv.new_empty((len(qkv), num_heads, self._head_dim))
        tile = max(1, _STORE_ELEMENTS // self._padded_dim)
        store_kernel[(len(qkv), triton.cdiv(num_all, tile))](
            qkv,
            cos,
            sin,
            qkv if qk_norm is None else qk_norm,
            lines.block_ids,
            lines.offsets,
            queries,
            self._memory.blocks,
            layer,
            eps,
            num_heads,
            *self._layout,
            self._padded_dim,
            tile,
            qk_norm is not None,
        )
        return queries

    def decode(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float) -> Tensor:
        """See `Ops`."""
        queries = queries.contiguous()
        out, group = torch.empty_like(queries), self._group(queries)
        num_splits = self.num_splits(len(queries), min(lines.max_context, window or lines.max_context))
        parts, weights = out, out
        if num_splits > 1:
            sizes = (len(queries), self._num_kv_heads, num_splits, group)
            parts = torch.empty((*sizes, self._head_dim), dtype=torch.float32, device=out.device)
            weights = torch.empty(sizes, dtype=torch.float32, device=out.device)
        share = (self._tiles.decode_tokens, _MIN_SPLIT_TOKENS)
        decode_kernel[(len(queries), self._num_kv_heads, num_splits)](
            queries,
            self._memory.blocks,
            lines.tables,
            lines.rows,
            lines.positions,
            parts,
            weights,
            lines.tables.stride(0),
            layer,
            window,
            num_splits,
            scale * _LOG2_E,
            *self._layout,
            group,
            max(16, triton.next_power_of_2(group)),
            self._padded_dim,
            *share,
            num_splits == 1,
            num_warps=self._tiles.decode_warps,
            num_stages=self._tiles.decode_stages,
        )
        if num_splits > 1:
            combine_kernel[queries.shape[:2]](
                parts,
                weights,
                lines.positions,
                out,
                window,
                num_splits,
                self._num_kv_heads,
                self._head_dim,
                group,
                self._padded_dim,
                *share,
                16,
            )
        return out

    def prefill(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float, out: Tensor) -> None:
        """See `Ops`."""
        assert queries.is_contiguous() and out.is_contiguous(), "lines are found by their numbers"
        group, tiles = self._group(queries), self._tiles
        if self._planned is not lines:
            held = query_tiles(lines, tiles.prefill_rows // group)
            self._planned, self._query_tiles = lines, torch.tensor(held, dtype=torch.int64).to(queries.device)
        prefill_kernel[(self._num_kv_heads * len(self._query_tiles),)](
            queries,
            self._memory.blocks,
            lines.tables,
            self._query_tiles,
            out,
            lines.tables.stride(0),
            layer,
            window,
            scale * _LOG2_E,
            *self._layout,
            group,
            self._padded_dim,
            tiles.prefill_rows,
            tiles.prefill_tokens,
            window > 0,
            num_warps=tiles.prefill_warps,
            num_stages=tiles.prefill_stages,
        )

    def num_splits(self, num_lines: int, max_context: int) -> int:
        """Into how many shares decode cuts each line's context: enough to occupy the device, none of them tiny."""
        wanted = _PROGRAMS_PER_SM * self._device.num_sms // max(1, num_lines * self._num_kv_heads)
        return max(1, min(wanted, -(-max_context // _MIN_SPLIT_TOKENS), _MAX_SPLITS))

    def _group(self, queries: Tensor) -> int:
        group = queries.shape[1] // self._num_kv_heads
        assert group <= self._tiles.prefill_rows, f"{group} query heads share a KV head; there are tiles for fewer"
        return group


def query_tiles(lines: Lines, num_together: int) -> list[tuple[int, int, int, int]]:
    """What `prefill_kernel` takes: first line, number of lines, row, first position of up to `num_together` lines each.

    Those with the longest context come first: they take longest, and what is left at the end should be short.
    """
    tiles = [
        (start, min(num_together, chunk.end - start), chunk.row, chunk.prefix + start - chunk.start)
        for chunk in lines.chunks
        for start in range(chunk.start, chunk.end, num_together)
    ]
    return sorted(tiles, key=lambda tile: -tile[3])


def _norm_warps(padded: int) -> int:
    """About eight elements a thread, so that each of a line's loads is one of 16 bytes."""
    return min(16, max(1, padded // 256))
