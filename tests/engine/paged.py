"""Paged memories whose rows are known in float64, and operators checked by what is written in books; for any device.

What no line may see is NaN: blocks of nobody, other rows' too, and the end of each row's last block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.kv import KVLayout, SlabShape
from engine.lines import Chunk, Lines
from engine.memory import TORCH_DTYPES, KVMemory, Part
from engine.ops import Ops

CLOSE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Of the largest expected value: a few roundings of the type."""
NUM_LAYERS = 2
LAYER = 1
SCALE = 0.3
CONTEXTS = (1, 37, 130, 64)


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes of a model, as small as a kernel's branches allow."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    block_size: int = 8
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.heads} heads on {self.kv_heads} of {self.dim}, blocks of {self.block_size}, {self.dtype}"

    @property
    def type(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]


CASES = (
    Case(),
    Case(heads=2, kv_heads=2, block_size=16),
    Case(heads=7, kv_heads=1, dim=24, block_size=1),
    Case(heads=20, kv_heads=1, block_size=32),
    Case(heads=6, kv_heads=2, dim=80, block_size=4, dtype="float16"),
    Case(heads=4, kv_heads=1, dim=64, block_size=2, dtype="bfloat16"),
    Case(heads=2, kv_heads=1, dim=128, block_size=64, dtype="bfloat16"),
    Case(heads=2, kv_heads=2, dim=256, block_size=16, dtype="float16"),
    Case(heads=5, kv_heads=1, dim=6, dtype="bfloat16"),
)


class Scene:
    """A KV memory that is NaN but for the contexts of some rows, which lie in it out of order.

    Shapes: `kv` float64 [rows][2, context, kv_heads, dim] of `LAYER`, as stored.
    """

    def __init__(self, case: Case, contexts: Sequence[int], device: str = "cpu", seed: int = 0) -> None:
        self.case, self.device = case, device
        self.made = torch.Generator().manual_seed(seed)
        width = -(-max(contexts) // case.block_size) + 2
        num_blocks = len(contexts) * width + 3
        layout = KVLayout(NUM_LAYERS, case.kv_heads, case.dim, case.block_size, case.dtype)
        shape = SlabShape(layout, num_blocks)
        self.slab = torch.zeros(shape.total_bytes, dtype=torch.uint8, device=device)
        self.memory = KVMemory(self.slab, shape)
        self.memory.blocks.fill_(torch.nan)
        free = torch.randperm(num_blocks, generator=self.made).tolist()
        tables = torch.empty(len(contexts), width, dtype=torch.int64)
        self.kv: list[Tensor] = []
        for row, context in enumerate(contexts):
            own = [free.pop() for _ in range(-(-context // case.block_size))]
            tables[row] = own[0]
            tables[row, : len(own)] = torch.tensor(own)
            kv = self.randn(2, context, case.kv_heads, case.dim)
            self.kv.append(kv.double().cpu())
            for start, block in zip(range(0, context, case.block_size), own, strict=True):
                page = kv[:, start : start + case.block_size].permute(2, 0, 1, 3)
                self.memory.blocks[block, :, LAYER, :, : page.shape[2]] = page
        self.tables = tables.to(device)

    def randn(self, *sizes: int) -> Tensor:
        """Of the case's type, on its device."""
        return torch.randn(sizes, generator=self.made).to(self.device, self.case.type)

    def lines(self, rows: Sequence[int], positions: Sequence[int], chunks: tuple[Chunk, ...] = ()) -> Lines:
        """Lines of these rows; those before the first chunk are single."""
        at, size = torch.tensor(rows, device=self.device), self.case.block_size
        places = torch.tensor(positions, device=self.device)
        num_single = chunks[0].start if chunks else len(rows)
        blocks = self.tables[at, places // size]
        longest = max(positions[:num_single], default=0) + 1
        return Lines(places * 0, places, at, self.tables, blocks, places % size, num_single, chunks, longest)

    def attended(self, queries: Tensor, lines: Lines, window: int) -> Tensor:
        """Attention as it is written in books. Shapes: [N, heads, dim] -> float64 [N, heads, dim], on the CPU."""
        out, queries = torch.empty(queries.shape, dtype=torch.float64), queries.double().cpu()
        group = self.case.heads // self.case.kv_heads
        for line, (row, position) in enumerate(zip(lines.rows.tolist(), lines.positions.tolist(), strict=True)):
            first = max(0, position - window + 1) if window else 0
            keys, values = self.kv[row][:, first : position + 1].repeat_interleave(group, 2)
            shares = (torch.einsum("hd,thd->ht", queries[line], keys) * SCALE).softmax(-1)
            out[line] = torch.einsum("ht,thd->hd", shares, values)
        return out


def assert_close(found: Tensor, expected: Tensor, case: Case) -> None:
    """Finite, of the case's type and near; nothing to compare is fine."""
    assert found.dtype is case.type and found.shape == expected.shape
    assert found.isfinite().all(), "something that no line may see got in"
    if len(found):
        error = (found.cpu().double() - expected.cpu()).abs().max() / expected.abs().max()
        assert error < CLOSE[case.dtype], f"off by {error:.1e} of the largest"


def check_decode(scene: Scene, ops: Ops, window: int, rows: Sequence[int], positions: Sequence[int]) -> None:
    """Single lines against their own contexts."""
    lines = scene.lines(rows, positions)
    queries = scene.randn(len(rows), scene.case.heads, scene.case.dim)
    found = ops.decode(LAYER, queries, lines, window, SCALE)
    assert_close(found, scene.attended(queries, lines, window), scene.case)


def check_prefill(scene: Scene, ops: Ops, window: int, ends: Sequence[tuple[int, int]]) -> None:
    """A single line of row 0, then a chunk a row: (prefix, end) of each."""
    rows, positions, chunks = [0], [0], []
    for row, (prefix, end) in enumerate(ends):
        chunks.append(Chunk(len(rows), len(rows) + end - prefix, row, prefix))
        rows += [row] * (end - prefix)
        positions += range(prefix, end)
    lines = scene.lines(rows, positions, tuple(chunks))
    queries = scene.randn(len(rows), scene.case.heads, scene.case.dim)
    out = torch.full_like(queries, 7.0)
    ops.prefill(LAYER, queries, lines, window, SCALE, out)
    assert (out[0] == 7.0).all(), "a single line is not prefill's"
    assert_close(out[1:], scene.attended(queries, lines, window)[1:], scene.case)


def check_store(scene: Scene, ops: Ops, is_normed: bool, rows: Sequence[int], positions: Sequence[int]) -> None:
    """Queries and keys are turned, keys and values lie at their places, and no other byte has changed."""
    case, num = scene.case, len(rows)
    num_turned = case.heads + case.kv_heads
    qkv = scene.randn(num, (num_turned + case.kv_heads) * case.dim)
    lines = scene.lines(rows, positions)
    cos, sin = scene.randn(num, 1, case.dim), scene.randn(num, 1, case.dim)
    qk_norm = scene.randn(num_turned, case.dim) if is_normed else None
    before, slab = scene.memory.blocks.clone(), scene.slab.clone()
    found = ops.store(LAYER, qkv, lines, (cos, sin), qk_norm, 1e-5)

    by_head = qkv.view(num, -1, case.dim).double()
    turning, values = by_head[:, :num_turned], by_head[:, num_turned:]
    if qk_norm is not None:
        turning = functional.rms_norm(turning, (case.dim,), None, 1e-5) * qk_norm.double()
    crossed = torch.cat((turning[..., case.dim // 2 :], turning[..., : case.dim // 2]), -1)
    turned = turning * cos.double() + crossed * sin.double()
    assert_close(found, turned[:, : case.heads], case)
    places = lines.block_ids, slice(None), LAYER, slice(None), lines.offsets
    stored = scene.memory.blocks[places]
    assert_close(stored[:, :, Part.KEYS], turned[:, case.heads :], case)
    assert torch.equal(stored[:, :, Part.VALUES].double(), values)
    scene.memory.blocks[places] = before[places]
    assert scene.slab.equal(slab), "something else was written"


def check_norms(scene: Scene, ops: Ops, num: int, size: int) -> None:
    """Alone, and with the sum kept in place."""

    def expected(x: Tensor) -> Tensor:
        return functional.rms_norm(x.double(), (size,), weight.double(), 1e-3)

    hidden, delta, weight = scene.randn(num, size), scene.randn(num, size), scene.randn(size)
    total, plain = hidden.double() + delta.double(), expected(hidden)
    assert_close(ops.rms_norm(hidden, weight, 1e-3), plain, scene.case)
    after = ops.add_rms_norm(hidden, delta, weight, 1e-3)
    assert_close(hidden, total, scene.case)
    assert_close(after, expected(hidden), scene.case)


def check_gated(scene: Scene, ops: Ops, num: int, size: int, activation: str) -> None:
    """Over a range in which the activation bends."""
    gate_up = 4 * scene.randn(num, 2 * size)
    gate, up = gate_up.double().chunk(2, -1)
    active = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    assert_close(ops.gated(gate_up, activation), active * up, scene.case)
