"""Every Triton kernel under Triton's interpreter against plain float64.

The interpreter runs programs one after the other on the CPU. It catches wrong arithmetic, places and masks; it knows
nothing of races, of memory spaces, of what the compiler makes of a kernel, or of speed. With bfloat16 it multiplies
matrices of bits as if they were integers, so it is given floats there; and it cuts where the device rounds (both in
Triton 3.7 to 3.9).
"""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import ConfigError
from core.kv import KVLayout, SlabShape
from engine.graphs import GraphedDecode
from engine.hf_config import read_model_config
from engine.lines import Chunk, Lines
from engine.memory import KVMemory, Part
from engine.model import Decoder
from engine.ops import TorchOps
from engine.weights import dummy_weights
from tests.engine.paged import (
    CASES,
    CLOSE,
    CONTEXTS,
    LAYER,
    SCALE,
    Case,
    Scene,
    assert_close,
    check_decode,
    check_gated,
    check_norms,
    check_prefill,
    check_store,
)
from tests.engine.test_graphs import Rerun

# Triton looks at this when it is imported, when a kernel is made and at the first launch; nobody else shall see it.
os.environ["TRITON_INTERPRET"] = "1"
try:
    triton_ops = pytest.importorskip("engine.triton_ops", reason="triton is not installed: pip install 'penstock[dev]'")
    from triton.runtime import interpreter
finally:
    del os.environ["TRITON_INTERPRET"]

pytestmark = [
    pytest.mark.slow,
    # numpy warns of what is meant: rows of padding divide nothing by nothing, and exp of much is infinite.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning"),
]

SMALL = triton_ops.Device(num_sms=4, shared_bytes=triton_ops.H200.shared_bytes)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where something imported Triton before this module; repairs the interpreter's product of bfloat16."""
    assert isinstance(triton_ops.decode_kernel, interpreter.InterpretedFunction), "triton was imported too early"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    product = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: object, a: object, b: object, *rest: object) -> object:
        return product(self, _as_floats(a), _as_floats(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def _as_floats(handle: "interpreter.TensorHandle") -> "interpreter.TensorHandle":
    if handle.dtype.scalar != interpreter.tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)


def ops_of(scene: Scene) -> "triton_ops.TritonOps":
    return triton_ops.TritonOps(scene.memory, SMALL)


# ── decode ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@each_case
@pytest.mark.parametrize("window", [0, 50])
def test_decode_is_attention_over_each_lines_own_context(case: Case, window: int) -> None:
    scene = Scene(case, CONTEXTS)
    check_decode(scene, ops_of(scene), window, [2, 0, 3, 1], [129, 0, 63, 36])


@pytest.mark.parametrize(
    ("num_splits", "window", "dtype"),
    [
        (1, 0, "float32"),
        (2, 70, "float16"),
        (3, 0, "bfloat16"),
        (5, 0, "float32"),
        (9, 1, "float32"),
        (20, 0, "float16"),
    ],
)
def test_any_number_of_splits_gives_the_same_even_where_most_are_empty(
    num_splits: int, window: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_ops, "_MIN_SPLIT_TOKENS", 16)
    monkeypatch.setattr(triton_ops.TritonOps, "num_splits", lambda *_: num_splits)
    scene = Scene(Case(heads=3, kv_heads=1, dtype=dtype), CONTEXTS)
    check_decode(scene, ops_of(scene), window, [0, 1, 2, 3], [0, 36, 129, 63])


def test_a_window_of_one_is_a_lines_own_value() -> None:
    scene = Scene(Case(), (40, 21))
    expected = torch.stack([kv[1, -1].repeat_interleave(2, 0) for kv in reversed(scene.kv)])
    found = ops_of(scene).decode(LAYER, scene.randn(2, 4, 16), scene.lines([1, 0], [20, 39]), 1, SCALE)
    assert_close(found, expected, Case())


def test_drafts_of_one_row_each_see_up_to_themselves_and_later_lines_are_left_out() -> None:
    scene = Scene(Case(), (40, 21))
    lines = scene.lines([1, 0, 0, 0, 1], [20, 37, 38, 39, 19], (Chunk(4, 5, 1, 19),))
    queries = scene.randn(5, 4, 16)
    found = ops_of(scene).decode(LAYER, queries[:4], lines, 0, SCALE)
    assert_close(found, scene.attended(queries, lines, 0)[:4], Case())


def test_tables_that_are_part_of_wider_ones_and_no_lines_at_all_are_fine() -> None:
    scene = Scene(Case(), CONTEXTS)
    width = scene.tables.shape[1]
    scene.tables = torch.cat((scene.tables, torch.full_like(scene.tables, 10**6)), 1)[:, :width]
    check_decode(scene, ops_of(scene), 0, [2, 1], [129, 36])
    none = scene.lines([2, 1], [129, 36]).select(torch.empty(0, dtype=torch.int64), 0)
    assert ops_of(scene).decode(LAYER, scene.randn(0, 4, 16), none, 0, SCALE).shape == (0, 4, 16)


def test_what_is_not_finite_in_a_lines_own_context_reaches_its_result_and_no_other() -> None:
    scene = Scene(Case(), CONTEXTS)
    scene.memory.blocks[scene.tables[2, 3], :, LAYER, Part.KEYS, 2] = torch.nan
    found = ops_of(scene).decode(LAYER, scene.randn(2, 4, 16), scene.lines([2, 1], [129, 36]), 0, SCALE)
    assert found[0].isnan().all() and found[1].isfinite().all()


@pytest.mark.parametrize(
    ("num_lines", "max_context", "expected"),
    [(1, 100, 1), (1, 1024, 8), (1, 65_536, 66), (8, 8192, 8), (16, 8192, 4), (16, 300, 3), (64, 8192, 1)],
)
def test_contexts_are_split_until_the_device_is_full_and_no_further(
    num_lines: int, max_context: int, expected: int
) -> None:
    memory = Scene(Case(heads=8, kv_heads=8), (1,)).memory
    assert triton_ops.TritonOps(memory, triton_ops.H200).num_splits(num_lines, max_context) == expected


# ── prefill ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@each_case
@pytest.mark.parametrize("window", [0, 20])
def test_prefill_is_attention_of_each_chunk_behind_its_prefix(case: Case, window: int) -> None:
    scene = Scene(case, (17, 9, 50))
    check_prefill(scene, ops_of(scene), window, [(0, 17), (8, 9), (37, 50)])


@pytest.mark.parametrize("window", [0, 140])
def test_chunks_that_span_several_tiles_of_queries_and_of_keys_are_whole(window: int) -> None:
    scene = Scene(Case(heads=8, kv_heads=1, dim=128, block_size=16, dtype="bfloat16"), (300,))
    check_prefill(scene, ops_of(scene), window, [(250, 300)])


def test_a_device_with_less_shared_memory_computes_the_same_in_smaller_tiles() -> None:
    scene = Scene(Case(heads=6, kv_heads=2, dim=80, dtype="float16"), (17, 9, 50))
    ops = triton_ops.TritonOps(scene.memory, triton_ops.Device(num_sms=4, shared_bytes=101_376))
    check_decode(scene, ops, 0, [2, 1], [49, 8])
    check_prefill(scene, ops, 0, [(0, 17), (8, 9), (37, 50)])


def test_another_step_is_not_taken_for_the_one_before() -> None:
    scene = Scene(Case(), (30, 30))
    ops = ops_of(scene)
    check_prefill(scene, ops, 0, [(0, 12)])
    check_prefill(scene, ops, 0, [(18, 30), (3, 5)])


def test_query_tiles_cover_each_chunks_lines_once_and_the_longest_contexts_come_first() -> None:
    chunks = (Chunk(2, 9, 1, 10), Chunk(9, 14, 0, 0))
    tiles = triton_ops.query_tiles(Scene(Case(), (30, 30)).lines([0] * 14, [0] * 14, chunks), 3)
    covered = sorted(line for start, num, _, _ in tiles for line in range(start, start + num))
    assert covered == list(range(2, 14))
    assert all(before[3] >= after[3] for before, after in pairwise(tiles))
    assert tiles[0] == (8, 1, 1, 16) and (9, 3, 0, 0) in tiles


# ── storing, norms, activation ───────────────────────────────────────────────────────────────────────────────────────


@each_case
@pytest.mark.parametrize("is_normed", [False, True])
def test_store_turns_queries_and_keys_and_puts_keys_and_values_at_their_places(case: Case, is_normed: bool) -> None:
    scene = Scene(case, (20, 20, 20))
    check_store(scene, ops_of(scene), is_normed, [2, 0, 1], [19, 3, 12])


def test_a_line_whose_block_is_negative_is_stored_nowhere() -> None:
    scene = Scene(Case(), (20, 20))
    lines = scene.lines([0, 1], [3, 4])
    lines.block_ids[1] = -1
    before = scene.slab.clone()
    qkv, angle = scene.randn(2, 8 * 16), scene.randn(2, 1, 16)
    found = ops_of(scene).store(LAYER, qkv, lines, (angle, angle), None, 1e-5)
    changed, shape = (scene.slab != before).nonzero(), scene.memory.shape
    first, stored = shape.block_offset(0), int(lines.block_ids[0])
    assert {(int(byte) - first) // shape.layout.bytes_per_block for byte in changed} == {stored}
    assert found.isfinite().all()


SIZES = [(3, 64), (2, 100), (1, 1100), (0, 64)]


@pytest.mark.parametrize(("num", "size"), SIZES)
@pytest.mark.parametrize("dtype", list(CLOSE))
def test_norms_are_those_of_float64_and_the_sum_is_kept_in_place(num: int, size: int, dtype: str) -> None:
    scene = Scene(Case(dtype=dtype), (1,))
    check_norms(scene, ops_of(scene), num, size)


@pytest.mark.parametrize(("num", "size"), SIZES)
@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_gated_activation_is_that_of_float64(num: int, size: int, dtype: str, activation: str) -> None:
    scene = Scene(Case(dtype=dtype), (1,))
    check_gated(scene, ops_of(scene), num, size, activation)


def test_the_activation_of_large_values_is_finite() -> None:
    gate_up = torch.tensor([[-1e4, -200.0, 200.0, 1e4, 1.0, 1.0, 1.0, 1.0]])
    for activation in ("silu", "gelu_tanh"):
        assert ops_of(Scene(Case(), (1,))).gated(gate_up, activation).tolist() == [[0.0, 0.0, 200.0, 1e4]]


def test_a_type_without_kernels_is_refused() -> None:
    shape = SlabShape(KVLayout(1, 1, 16, 4, "float64"), 1)
    with pytest.raises(ConfigError, match="no Triton kernels"):
        triton_ops.TritonOps(KVMemory(torch.zeros(shape.total_bytes, dtype=torch.uint8), shape), SMALL)


# ── a whole model ────────────────────────────────────────────────────────────────────────────────────────────────────

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 67,
    "max_position_embeddings": 64,
    "attention_bias": True,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}


def test_a_model_gives_the_same_logits_through_torch_through_triton_and_replayed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    config = read_model_config(tmp_path)
    weights = dummy_weights(config, torch.float32, torch.device("cpu"))
    shape = SlabShape(KVLayout(2, 2, 16, 4, "float32"), 40)
    memories = [KVMemory(torch.zeros(shape.total_bytes, dtype=torch.uint8), shape) for _ in range(3)]
    ops = TorchOps(memories[0]), *(triton_ops.TritonOps(each, SMALL) for each in memories[1:])
    models = [Decoder(config, weights, *each) for each in zip(memories, ops, strict=True)]
    replayed = GraphedDecode(models[2].forward, 8, 12, 48, torch.device("cpu"), Rerun())
    tables = torch.randperm(39, generator=torch.Generator().manual_seed(1))[:36].view(3, 12) + 1
    chunks = Chunk(0, 5, 0, 0), Chunk(5, 7, 1, 0), Chunk(7, 16, 2, 0)
    first = _step(tables, [0] * 5 + [1] * 2 + [2] * 9, [*range(5), *range(2), *range(9)], chunks)
    _assert_alike([model.forward(first) for model in models])
    for ahead in range(2):
        lines = _step(tables, [1, 0, 2], [2 + ahead, 5 + ahead, 9 + ahead])
        _assert_alike([*(model.forward(lines) for model in models[:2]), replayed.run(lines)])


def _step(tables: Tensor, rows: list[int], positions: list[int], chunks: tuple[Chunk, ...] = ()) -> Lines:
    at, places = torch.tensor(rows), torch.tensor(positions)
    token_ids = (at * 31 + places * 17) % 67
    num_single = 0 if chunks else len(rows)
    return Lines(
        token_ids, places, at, tables, tables[at, places // 4], places % 4, num_single, chunks, max(positions) + 1
    )


def _assert_alike(logits: list[Tensor]) -> None:
    for found in logits[1:]:
        assert (found - logits[0]).abs().max() < 1e-5 * logits[0].abs().max()
