"""The operators, through torch and through C, against float64; and how the C library comes to be."""

import ctypes
import logging
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core import native_build
from core.kv import KVLayout, SlabShape
from core.native_build import BuildFailed
from engine.lines import Chunk, Lines
from engine.memory import KVMemory
from engine.native import build, library
from engine.native.build import built_library
from engine.native.library import Native, load
from engine.ops import NativeOps, Ops, TorchOps, ops_for

EPS = 1e-5
SHAPES = [
    # heads, KV heads, head size, block size
    (8, 4, 32, 16),
    (4, 4, 64, 16),
    (6, 2, 24, 4),
    (5, 1, 80, 5),
    (8, 1, 128, 16),
    (7, 1, 256, 32),
    (6, 3, 6, 4),
    (3, 3, 96, 1),
    (32, 1, 16, 7),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in every run: what is compared is rounding."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def native() -> Iterator[Native]:
    """The library; these tests need a C compiler."""
    loaded = load()
    assert loaded is not None, "the native kernels could not be built; the log says why"
    yield loaded
    loaded.stop_threads()


def a_memory(shape: tuple[int, int, int, int], num_blocks: int, dtype: str = "float32") -> KVMemory:
    _, kv_heads, head_dim, block_size = shape
    slab = SlabShape(KVLayout(2, kv_heads, head_dim, block_size, dtype), num_blocks)
    memory = KVMemory(bytearray(slab.total_bytes), slab)
    memory.blocks.normal_(generator=torch.Generator().manual_seed(num_blocks))
    return memory


def single_lines(positions: list[int], block_size: int, num_spare: int = 2) -> Lines:
    """One line a row, at these positions, with blocks in no order and tables padded with the row's first block."""
    at, rows = torch.tensor(positions), torch.arange(len(positions))
    num_blocks = at // block_size + 1
    width = int(num_blocks.max()) + num_spare
    ids = torch.randperm(len(positions) * width, generator=torch.Generator().manual_seed(1)).view(len(positions), width)
    tables = torch.where(torch.arange(width) < num_blocks[:, None], ids, ids[:, :1])
    here = tables[rows, at // block_size]
    most = max(positions) + 1
    return Lines(torch.zeros_like(at), at, rows, tables, here, at % block_size, len(positions), (), most)


def chunk_lines(chunks: list[tuple[int, int]], block_size: int) -> Lines:
    """Chunks of (prefix, tokens), one a row."""
    ends = [prefix + num for prefix, num in chunks]
    tables = single_lines([end - 1 for end in ends], block_size).tables
    at = torch.cat([torch.arange(prefix, prefix + num) for prefix, num in chunks])
    rows = torch.repeat_interleave(torch.arange(len(chunks)), torch.tensor([num for _, num in chunks]))
    starts = [sum(num for _, num in chunks[:index]) for index in range(len(chunks))]
    made = tuple(
        Chunk(s, s + num, row, prefix) for row, (s, (prefix, num)) in enumerate(zip(starts, chunks, strict=True))
    )
    here = tables[rows, at // block_size]
    return Lines(torch.zeros_like(at), at, rows, tables, here, at % block_size, 0, made, 0)


def attention(memory: KVMemory, layer: int, queries: Tensor, lines: Lines, window: int, scale: float) -> Tensor:
    """What each line should see, one by one and in float64. Shapes: [n, heads, head_dim] -> the same."""
    out = []
    for line, query in enumerate(queries.double()):
        blocks = memory.blocks[lines.tables[lines.rows[line]], :, layer].double()
        position = int(lines.positions[line])
        first = max(0, position - window + 1) if window else 0
        # [W, K, 2, B, D] -> [2, K, W * B, D], then what is visible
        keys, values = blocks.permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, first : position + 1]
        grouped = query.view(len(keys), -1, query.shape[-1])
        out.append(((grouped @ keys.transpose(1, 2) * scale).softmax(-1) @ values).flatten(0, 1))
    return torch.stack(out)


def each_ops(memory: KVMemory, native: Native, num_threads: int = 1) -> list[Ops]:
    return [TorchOps(memory), NativeOps(memory, native, num_threads)]


@pytest.mark.parametrize("window", [0, 1, 33])
@pytest.mark.parametrize("shape", SHAPES)
def test_single_lines_attend_to_their_own_past(native: Native, shape: tuple[int, int, int, int], window: int) -> None:
    lines = single_lines([0, 99, 15, 16, 63, 64, 40], shape[3])
    memory = a_memory(shape, lines.tables.numel())
    queries = torch.randn(len(lines), shape[0], shape[2])
    scale = shape[2] ** -0.5
    expected = attention(memory, 1, queries, lines, window, scale)
    for ops in each_ops(memory, native):
        found = ops.decode(1, queries, lines, window, scale)
        assert (found - expected).abs().max() < 3e-6
        first = ops.decode(1, queries[:3], lines, window, scale)
        assert (first - expected[:3]).abs().max() < 3e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_a_line_attends_the_same_whatever_is_beside_it(native: Native, shape: tuple[int, int, int, int]) -> None:
    lines = single_lines([70, 3, 99], shape[3])
    alone = Lines(
        *(each[2:] for each in (lines.token_ids, lines.positions, lines.rows)), lines.tables, *_none(), 1, (), 100
    )
    memory = a_memory(shape, lines.tables.numel())
    queries = torch.randn(3, shape[0], shape[2])
    together = NativeOps(memory, native).decode(0, queries, lines, 0, 0.2)
    assert torch.equal(NativeOps(memory, native).decode(0, queries[2:], alone, 0, 0.2), together[2:])
    assert torch.equal(NativeOps(memory, native, 3).decode(0, queries, lines, 0, 0.2), together)


def _none() -> tuple[Tensor, Tensor]:
    return torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


def test_what_lies_beyond_a_line_is_not_read_even_if_it_is_nan(native: Native) -> None:
    shape = (4, 2, 32, 16)
    lines = single_lines([20, 37], 16)
    memory = a_memory(shape, lines.tables.numel())
    queries = torch.randn(2, 4, 32)
    expected = attention(memory, 0, queries, lines, 8, 0.2)
    seen = torch.zeros(lines.tables.numel() * 16, dtype=torch.bool)
    for row, position in enumerate([20, 37]):
        for each in range(position - 7, position + 1):
            seen[lines.tables[row, each // 16] * 16 + each % 16] = True
    hidden = ~seen.view(-1, 16)
    memory.blocks.permute(0, 4, 1, 2, 3, 5)[hidden] = torch.nan
    assert (NativeOps(memory, native).decode(0, queries, lines, 8, 0.2) - expected).abs().max() < 3e-6


def test_nan_and_infinity_go_through_attention_of_their_own_line_only(native: Native) -> None:
    lines = single_lines([40, 40, 40, 40], 16)
    memory = a_memory((2, 1, 32, 16), lines.tables.numel())
    queries = torch.randn(4, 2, 32)
    memory.blocks[lines.tables[1, 1], 0, 0, 0, 3, 5] = torch.nan
    memory.blocks[lines.tables[2, 0], 0, 0, 1, 3, 5] = torch.inf
    queries[3, 0, 0] = torch.nan
    for ops in each_ops(memory, native):
        finite = ops.decode(0, queries, lines, 0, 0.2).isfinite()
        assert finite[0].all() and not finite[1].any()
        assert finite[2].sum() == 2 * 31
        assert not finite[3, 0].any() and finite[3, 1].all()


@pytest.mark.parametrize("window", [0, 7, 1000])
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_chunks_attend_to_their_prefix_and_to_themselves(
    native: Native, shape: tuple[int, int, int, int], window: int
) -> None:
    lines = chunk_lines([(0, 19), (30, 11), (5, 1)], shape[3])
    memory = a_memory(shape, lines.tables.numel())
    queries = torch.randn(len(lines), shape[0], shape[2])
    expected = attention(memory, 1, queries, lines, window, 0.3)
    for ops in each_ops(memory, native):
        out = torch.full_like(queries, 7.0)
        ops.prefill(1, queries, lines, window, 0.3, out)
        assert (out - expected).abs().max() < 3e-6


def test_prefill_leaves_the_single_lines_alone(native: Native) -> None:
    chunks = chunk_lines([(0, 9)], 4)
    after = Chunk(2, 11, 0, 0)
    two = torch.zeros(2, dtype=torch.int64)
    columns = [torch.cat((two, each)) for each in (chunks.token_ids, chunks.positions, chunks.rows)]
    lines = Lines(
        *columns,
        chunks.tables,
        *(torch.cat((two, each)) for each in (chunks.block_ids, chunks.offsets)),
        2,
        (after,),
        1,
    )
    memory = a_memory((4, 2, 8, 4), lines.tables.numel())
    out = torch.full((11, 4, 8), 7.0)
    NativeOps(memory, native).prefill(0, torch.randn(11, 4, 8), lines, 0, 0.3, out)
    assert bool((out[:2] == 7.0).all()) and not bool((out[2:] == 7.0).any())


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_storing_norms_turns_and_puts_keys_and_values_at_their_places(
    native: Native, shape: tuple[int, int, int, int], normed: bool
) -> None:
    heads, kv_heads, dim, block_size = shape
    lines = single_lines([3, 40, 17], block_size)
    qkv = torch.randn(3, (heads + 2 * kv_heads) * dim)
    angles = torch.randn(3, 1, dim), torch.randn(3, 1, dim)
    norm = torch.randn(heads + kv_heads, dim) if normed else None
    wide = a_memory(shape, lines.tables.numel(), "float64")
    exact_angles = angles[0].double(), angles[1].double()
    expected = TorchOps(wide).store(1, qkv.double(), lines, exact_angles, None if norm is None else norm.double(), EPS)
    query = qkv[1].view(-1, dim)[0].double()
    if norm is not None:
        query = query / (query.square().mean() + EPS).sqrt() * norm[0]
    turned = query * exact_angles[0][1, 0] + query.roll(dim // 2) * exact_angles[1][1, 0]
    assert torch.allclose(expected[1, 0], turned)
    for kind in (TorchOps, NativeOps):
        memory = a_memory(shape, lines.tables.numel())
        before = memory.blocks.clone()
        ops = TorchOps(memory) if kind is TorchOps else NativeOps(memory, native)
        assert torch.allclose(ops.store(1, qkv, lines, angles, norm, EPS).double(), expected, rtol=1e-5, atol=1e-5)
        for line in range(3):
            block, offset = int(lines.block_ids[line]), int(lines.offsets[line])
            stored = memory.blocks[block, :, 1, :, offset]
            assert torch.allclose(stored.double(), wide.blocks[block, :, 1, :, offset], rtol=1e-5, atol=1e-5)
            memory.blocks[block, :, 1, :, offset] = before[block, :, 1, :, offset]
        assert torch.equal(memory.blocks, before)


@pytest.mark.parametrize("size", [4, 37, 64, 1030])
def test_norms_and_activations_are_those_of_float64(native: Native, size: int) -> None:
    memory = a_memory((2, 1, 8, 4), 1)
    x, delta, weight = torch.randn(9, size) * 3, torch.randn(9, size), torch.randn(size)
    gate_up = torch.randn(9, 2 * size) * 5
    exact = TorchOps(memory)
    for ops in each_ops(memory, native):
        expected = exact.rms_norm(x.double(), weight.double(), EPS)
        assert torch.allclose(ops.rms_norm(x, weight, EPS).double(), expected, rtol=1e-5, atol=1e-6)
        hidden = x.clone()
        expected = exact.rms_norm((x + delta).double(), weight.double(), EPS)
        assert torch.allclose(ops.add_rms_norm(hidden, delta, weight, EPS).double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(hidden, x + delta)
        for activation in ("silu", "gelu_tanh"):
            expected = exact.gated(gate_up.double(), activation)
            assert torch.allclose(ops.gated(gate_up, activation).double(), expected, rtol=1e-5, atol=2e-5)


def test_extreme_gates_neither_overflow_nor_hide_nan(native: Native) -> None:
    ops = NativeOps(a_memory((2, 1, 8, 4), 1), native)
    gates = torch.tensor([[-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 200.0, 1e30, torch.nan, torch.inf]])
    up = torch.ones_like(gates)
    for activation, exact in (("silu", torch.nn.functional.silu), ("gelu_tanh", _gelu)):
        expected = exact(gates.double()).float()
        found = ops.gated(torch.cat((gates, up), 1), activation)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-30, equal_nan=True), activation


def _gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def test_threads_change_nothing_start_when_asked_and_stop_when_told(native: Native) -> None:
    native.stop_threads()
    before = len(os.listdir("/proc/self/task"))
    memory = a_memory((2, 1, 8, 4), 1)
    x, weight = torch.randn(64, 1024), torch.randn(1024)
    expected = NativeOps(memory, native).rms_norm(x, weight, EPS)
    assert len(os.listdir("/proc/self/task")) == before
    for _ in range(200):
        assert torch.equal(NativeOps(memory, native, 3).rms_norm(x, weight, EPS), expected)
    assert len(os.listdir("/proc/self/task")) == before + 2
    native.stop_threads()
    assert len(os.listdir("/proc/self/task")) == before
    assert torch.equal(NativeOps(memory, native, 2).rms_norm(x, weight, EPS), expected)


def test_a_forked_child_starts_threads_of_its_own(native: Native) -> None:
    memory = a_memory((2, 1, 8, 4), 1)
    ops = NativeOps(memory, native, 2)
    x, weight = torch.randn(64, 1024), torch.randn(1024)
    expected = ops.rms_norm(x, weight, EPS)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(ops.rms_norm(x, weight, EPS), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_float64_memory_gets_the_operators_of_torch(native: Native) -> None:
    assert type(ops_for(a_memory((2, 1, 8, 4), 1, "float64"))) is TorchOps
    assert type(ops_for(a_memory((2, 1, 8, 4), 1))) is NativeOps


# ── how the library comes to be ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that compiles at once, and a cache of this test's own."""
    source = tmp_path / "kernels.c"
    source.write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native_build.tempfile, "tempdir", str(tmp_path))
    return source


def test_a_library_is_compiled_once_per_source_and_only_its_user_can_write_it(small_source: Path) -> None:
    made = built_library()
    assert ctypes.CDLL(str(made)).answer() == 42
    assert stat.S_IMODE(made.stat().st_mode) == stat.S_IMODE(made.parent.stat().st_mode) == 0o700
    when = made.stat().st_mtime_ns
    assert built_library() == made and made.stat().st_mtime_ns == when
    small_source.write_text("int answer(void) { return 43; }\n")
    assert built_library() != made
    assert [each for each in made.parent.iterdir() if each.suffix != ".so"] == []


def test_processes_that_build_at_once_all_get_a_whole_library(small_source: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        made = pool.starmap(built_library, [()] * 8)
    assert len(set(made)) == 1
    assert ctypes.CDLL(str(made[0])).answer() == 42


def test_a_cache_that_others_can_write_is_not_used(small_source: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "cache" / "penstock"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    assert built_library().parent == tmp_path / f"penstock-{os.getuid()}"
    (tmp_path / f"penstock-{os.getuid()}").chmod(0o770)
    with pytest.raises(BuildFailed, match="can be written by others"):
        built_library()


def test_a_library_that_others_could_have_written_is_not_loaded(small_source: Path) -> None:
    built_library().chmod(0o722)
    with pytest.raises(BuildFailed, match="can be written by others"):
        built_library()


def test_an_error_of_the_compiler_is_told(small_source: Path) -> None:
    small_source.write_text("int answer(void) { return }\n")
    with pytest.raises(BuildFailed, match=r"refused kernels\.c: .*error"):
        built_library()


@pytest.mark.parametrize(
    ("variable", "value", "reason"), [("PENSTOCK_NATIVE", "0", "off"), ("CC", "no-such", "'no-such'")]
)
def test_without_a_library_the_reason_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    load.cache_clear()
    try:
        with caplog.at_level(logging.INFO, library.LOG.name):
            assert load() is None and load() is None
            assert type(ops_for(a_memory((2, 1, 8, 4), 1))) is TorchOps
    finally:
        load.cache_clear()
    assert len(caplog.messages) == 1 and reason in caplog.messages[0]
