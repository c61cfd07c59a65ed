"""Triton kernels on a GPU against float64: the checks that the interpreter passes, and sizes that fill a device.

What the interpreter cannot show and these can: what the compiler made of a kernel, races, shared memory, rounding.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch

from tests.engine.paged import (
    CASES,
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

if TYPE_CHECKING:
    from engine.triton_ops import TritonOps

pytestmark = pytest.mark.gpu

LARGE = (
    Case(heads=32, kv_heads=8, dim=128, block_size=16, dtype="bfloat16"),
    Case(heads=32, kv_heads=8, dim=64, block_size=16, dtype="float16"),
    Case(heads=28, kv_heads=4, dim=128, block_size=32, dtype="bfloat16"),
    Case(heads=8, kv_heads=4, dim=256, block_size=16, dtype="bfloat16"),
    Case(heads=8, kv_heads=2, dim=128, block_size=16),
)
LONG = (1, 127, 128, 129, 1500, 3000)
each_case = pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
each_large_case = pytest.mark.parametrize("case", LARGE, ids=str)
each_window = pytest.mark.parametrize("window", [0, 1, 50, 1000])


Make = Callable[[Case, Sequence[int]], "tuple[Scene, TritonOps]"]


@pytest.fixture
def made(device: str, triton_ops: ModuleType) -> Make:
    """A memory on the device with rows of these contexts, and its operators."""

    def make(case: Case, contexts: Sequence[int]) -> "tuple[Scene, TritonOps]":
        scene = Scene(case, contexts, device)
        return scene, triton_ops.TritonOps(scene.memory)

    return make


@each_case
@each_window
def test_decode_is_attention_over_each_lines_own_context(case: Case, window: int, made: Make) -> None:
    check_decode(*made(case, CONTEXTS), window, [2, 0, 3, 1], [129, 0, 63, 36])


@each_large_case
@each_window
def test_decode_of_long_contexts_is_split_and_added_up(case: Case, window: int, made: Make) -> None:
    scene, ops = made(case, LONG)
    assert ops.num_splits(len(LONG), max(LONG)) > 1
    check_decode(scene, ops, window, range(len(LONG)), [length - 1 for length in LONG])


@each_large_case
def test_decode_of_one_line_and_of_many_lines_of_few_rows(case: Case, made: Make) -> None:
    scene, ops = made(case, LONG)
    check_decode(scene, ops, 0, [5], [2999])
    check_decode(scene, ops, 0, [4] * 300, range(1200, 1500))


@each_case
@each_window
def test_prefill_is_attention_of_each_chunk_behind_its_prefix(case: Case, window: int, made: Make) -> None:
    scene, ops = made(case, (17, 9, 50))
    check_prefill(scene, ops, window, [(0, 17), (8, 9), (37, 50)])


@each_large_case
@each_window
def test_prefill_of_many_tiles(case: Case, window: int, made: Make) -> None:
    scene, ops = made(case, (700, 1, 600, 1200))
    check_prefill(scene, ops, window, [(0, 700), (0, 1), (129, 600), (1190, 1200)])


@each_case
@pytest.mark.parametrize("is_normed", [False, True])
def test_store_turns_queries_and_keys_and_puts_keys_and_values_at_their_places(
    case: Case, is_normed: bool, made: Make
) -> None:
    scene, ops = made(case, (20, 20, 20))
    check_store(scene, ops, is_normed, [2, 0, 1], [19, 3, 12])
    check_store(scene, ops, is_normed, [0] * 20 + [2] * 20, [*range(20), *range(20)])


@pytest.mark.parametrize(("num", "size"), [(0, 64), (3, 100), (1, 4096), (700, 4096), (64, 14_336)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_norms_and_activations_are_those_of_float64(num: int, size: int, dtype: str, made: Make) -> None:
    scene, ops = made(Case(dtype=dtype), (1,))
    check_norms(scene, ops, num, size)
    check_gated(scene, ops, num, size, "silu")
    check_gated(scene, ops, num, size, "gelu_tanh")


def test_the_same_step_gives_the_same_bits(made: Make) -> None:
    scene, ops = made(LARGE[0], LONG)
    lines = scene.lines(range(len(LONG)), [length - 1 for length in LONG])
    queries = scene.randn(len(LONG), 32, 128)
    first = ops.decode(LAYER, queries, lines, 0, SCALE)
    for _ in range(20):
        assert torch.equal(ops.decode(LAYER, queries, lines, 0, SCALE), first)
    assert_close(first, scene.attended(queries, lines, 0), LARGE[0])
