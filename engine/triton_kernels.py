"""Triton kernels between matrix products: norms, the gated activation, and storing a step's keys and values.

All compute in float32 and round once, to the type of their output. Their sizes are reckoned, not tuned. The shapes of
their grids are argued for an H200 (132 multiprocessors, 4.3 TB/s copied): a program should move some KiB, so that its
start of about a microsecond is hidden behind others, and a single line should still be spread over many programs.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def kernel(*unspecialised: str) -> Callable[[Callable[..., object]], Any]:
    """Compile a function with Triton when it is first launched (or interpret it under TRITON_INTERPRET=1).

    `unspecialised` integers do not cause another compilation where they are 1 or a multiple of 16: those that differ
    from layer to layer and from step to step.
    """
    options: dict[str, Any] = {"do_not_specialize": unspecialised} if unspecialised else {}

    def made(function: Callable[..., object]) -> Any:
        return triton.jit(function, **options)

    return made


@kernel()
def rms_norm_kernel(
    x: tl.tensor, weight: tl.tensor, out: tl.tensor, eps: tl.tensor, size: tl.constexpr, padded: tl.constexpr
) -> None:
    """One program a line. Shapes: `x` and `out` [N, size]; `weight` [size]."""
    line, at = tl.program_id(0).to(tl.int64), tl.arange(0, padded)
    held = at < size
    value = tl.load(x + line * size + at, mask=held, other=0.0).to(tl.float32)
    scale = tl.load(weight + at, mask=held, other=0.0).to(tl.float32)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / size + eps) * scale
    tl.store(out + line * size + at, normed.to(out.dtype.element_ty), mask=held)


@kernel()
def add_rms_norm_kernel(
    hidden: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    size: tl.constexpr,
    padded: tl.constexpr,
) -> None:
    """One program a line: the sum goes back to `hidden`; what is normalised is the sum as it is stored.

    Shapes: `hidden`, `delta` and `out` [N, size]; `weight` [size].
    """
    line, at = tl.program_id(0).to(tl.int64), tl.arange(0, padded)
    held, places = at < size, line * size + at
    before = tl.load(hidden + places, mask=held, other=0.0).to(tl.float32)
    added = tl.load(delta + places, mask=held, other=0.0).to(tl.float32)
    stored = (before + added).to(hidden.dtype.element_ty)
    tl.store(hidden + places, stored, mask=held)
    value = stored.to(tl.float32)
    scale = tl.load(weight + at, mask=held, other=0.0).to(tl.float32)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / size + eps) * scale
    tl.store(out + places, normed.to(out.dtype.element_ty), mask=held)


@kernel()
def gated_kernel(
    gate_up: tl.tensor, out: tl.tensor, size: tl.constexpr, tile: tl.constexpr, is_gelu: tl.constexpr
) -> None:
    """A program takes `tile` channels of a line. Shapes: `gate_up` [N, 2 size]; `out` [N, size].

    gelu's tanh form, 0.5 x (1 + tanh u), is x sigmoid(2u).
    """
    line, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * tile + tl.arange(0, tile)
    held = at < size
    gate = tl.load(gate_up + line * 2 * size + at, mask=held, other=0.0).to(tl.float32)
    up = tl.load(gate_up + line * 2 * size + size + at, mask=held, other=0.0).to(tl.float32)
    bent = gate
    if is_gelu:
        bent = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 sqrt(2 / pi)
    active = gate / (1.0 + tl.exp(-bent))
    tl.store(out + line * size + at, (active * up).to(out.dtype.element_ty), mask=held)


@kernel("layer")
def store_kernel(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    qk_norm: tl.tensor,
    block_ids: tl.tensor,
    offsets: tl.tensor,
    queries: tl.tensor,
    pages: tl.tensor,
    layer: tl.tensor,
    eps: tl.tensor,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    num_layers: tl.constexpr,
    block_size: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    tile: tl.constexpr,
    is_normed: tl.constexpr,
) -> None:
    """A program takes `tile` heads of a line: queries are written densely, keys and values to their page.

    A line whose block is negative has no place: its queries are computed and nothing is stored, as graphs pad.
    Shapes: `qkv` [N, (num_heads + 2 num_kv_heads) * head_dim]; `cos`, `sin` [N, head_dim]; `qk_norm`
    [num_heads + num_kv_heads, head_dim] (not read unless `is_normed`); `block_ids`, `offsets` [N]; `queries`
    [N, num_heads, head_dim]; `pages` [blocks, kv_heads, layers, 2, block_size, head_dim].
    """
    page: tl.constexpr = block_size * head_dim
    half: tl.constexpr = head_dim // 2
    num_turned: tl.constexpr = num_heads + num_kv_heads
    num_all: tl.constexpr = num_turned + num_kv_heads
    line = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * tile + tl.arange(0, tile))[:, None]
    at = tl.arange(0, padded_dim)[None, :]
    other = (at + half) % head_dim
    held = (head < num_all) & (at < head_dim)
    turns = held & (head < num_turned)
    source = qkv + (line * num_all + head) * head_dim
    raw = tl.load(source + at, mask=held, other=0.0)
    value = raw.to(tl.float32)
    crossed = tl.load(source + other, mask=turns, other=0.0).to(tl.float32)
    if is_normed:
        inverse = tl.rsqrt(tl.sum(value * value, 1) / head_dim + eps)[:, None]
        value *= inverse * tl.load(qk_norm + head * head_dim + at, mask=turns, other=0.0).to(tl.float32)
        crossed *= inverse * tl.load(qk_norm + head * head_dim + other, mask=turns, other=0.0).to(tl.float32)
    in_head = at < head_dim
    cosine = tl.load(cos + line * head_dim + at, mask=in_head, other=0.0).to(tl.float32)
    sine = tl.load(sin + line * head_dim + at, mask=in_head, other=0.0).to(tl.float32)
    turned = (value * cosine + crossed * sine).to(queries.dtype.element_ty)
    done = tl.where(head < num_turned, turned, raw)
    tl.store(queries + (line * num_heads + head) * head_dim + at, done, mask=held & (head < num_heads))
    block, offset = tl.load(block_ids + line), tl.load(offsets + line)
    kv_head = (head - num_heads) % num_kv_heads
    part = tl.where(head < num_turned, 0, 1)
    target = pages + ((block * num_kv_heads + kv_head) * num_layers + layer) * (2 * page) + part * page
    stored = held & (head >= num_heads) & (block >= 0)
    tl.store(target + offset * head_dim + at, done, mask=stored)
