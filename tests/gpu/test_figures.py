"""The figures' code at a small shape: it runs, and counts bytes and arithmetic as a hand does. No time is asserted."""

from types import ModuleType

import pytest
import torch

from tests.gpu import figures

pytestmark = pytest.mark.gpu

SMALL = figures.LLAMA_8B | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def test_figures_of_a_small_shape_are_measured_beside_their_bars(device: str, triton_ops: ModuleType) -> None:
    plan = figures.Plan(rows=(1, 8), context=64, prompt=128, copied_bytes=1 << 20)
    found = figures.measure(figures.config_of(SMALL), "bfloat16", torch.device(device), triton_ops.TritonOps, plan)
    for figure in found:
        print(f"{figure.name}: {figure.seconds * 1e3:.3f} ms, {figure.of_bar:.0%} of the bar")
    assert [figure.name for figure in found] == ["decode_b1_of_copy", "decode_b8_of_copy", "prefill_128_of_gemm"]
    assert all(figure.of_bar > 0 for figure in found)


def test_bytes_and_arithmetic_are_counted_as_by_hand(device: str, triton_ops: ModuleType) -> None:
    config = figures.config_of(SMALL)
    bench = figures.Bench(config, "bfloat16", torch.device(device), 2, 32, triton_ops.TritonOps)
    layer = 256 * (4 + 2 + 2) * 64 + 256 * 256 + 3 * 256 * 512
    assert bench.decode_bytes(2, 32) == 2 * (2 * layer + 256 * 1000) + 2 * 32 * (2 * 2 * 2 * 64) * 2
    assert bench.prefill_flop(32) == 2 * 32 * 2 * layer + 2 * 2 * 4 * 64 * 32**2 + 2 * 256 * 1000
