"""Weights as they are put together: where they come from, what they become, what it takes to load them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import ConfigError
from core.kv import SlabShape
from engine.checkpoint import expected_tensors
from engine.hf_config import read_model_config
from engine.linear import Int8Linear, Linear
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, read_model_info
from engine.moe import Experts
from engine.weights import DenseMLP, Weights, dummy_weights, load_weights
from tests.engine.conftest import VARIANTS, Bench

CPU = torch.device("cpu")
CONFIGS = {
    "dense": '{"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2',
    "gemma": '{"model_type": "gemma", "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 1',
    "mixtral": '{"model_type": "mixtral", "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3',
    "qwen3_moe": '{"model_type": "qwen3_moe", "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 5, '
    '"num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [0]',
}
SIZES = ', "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300, '
REST = '"max_position_embeddings": 512}'


@pytest.fixture(params=CONFIGS)
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a config and nothing else."""
    (tmp_path / "config.json").write_text(CONFIGS[request.param] + SIZES + REST)
    return tmp_path


def write_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    shapes = expected_tensors(read_model_config(folder))
    generator = torch.Generator().manual_seed(1)
    held = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return held


def floats(weights: Weights) -> list[torch.Tensor]:
    """All matrices and norms in a fixed order; of quantised ones what they stand for."""
    found = [weights.embeddings, weights.norm, as_float(weights.head)]
    for layer in weights.layers:
        found += [layer.attention_norm, as_float(layer.qkv), as_float(layer.out), layer.mlp_norm]
        if isinstance(layer.mlp, DenseMLP):
            found += [as_float(layer.mlp.gate_up), as_float(layer.mlp.down)]
        else:
            found += [as_float(each) for each in (layer.mlp.router, *layer.mlp.gate_up, *layer.mlp.down)]
    return found


def as_float(matrix: Linear | Int8Linear) -> torch.Tensor:
    return matrix.dequantized() if isinstance(matrix, Int8Linear) else matrix.weight


def test_a_checkpoint_is_put_together_by_name(bare: Path) -> None:
    held, config = write_checkpoint(bare), read_model_config(bare)
    weights = load_weights(bare, config, torch.float64, CPU)
    first = weights.layers[0]
    inputs = [held[f"model.layers.0.self_attn.{each}_proj.weight"] for each in "qkv"]
    assert torch.equal(first.qkv.weight, torch.cat(inputs).double())
    stored = held["model.layers.0.input_layernorm.weight"].double()
    assert torch.equal(first.attention_norm, stored + (1.0 if config.family == "gemma" else 0.0))
    assert (weights.head.weight is weights.embeddings) == (config.family == "gemma")
    if isinstance(first.mlp, DenseMLP):
        parts = [held[f"model.layers.0.mlp.{each}_proj.weight"] for each in ("gate", "up")]
        assert torch.equal(first.mlp.gate_up.weight, torch.cat(parts).double())
    last = weights.layers[1].mlp
    if isinstance(last, Experts):
        assert last.stacked is not None
        assert last.gate_up[1].weight.data_ptr() == last.stacked[0][1].data_ptr(), "one copy in memory"
        assert last.down[2].weight.data_ptr() == last.stacked[1][2].data_ptr()
    assert sum(map(torch.numel, floats(weights))) - (config.tied_embeddings and weights.embeddings.numel()) == sum(
        tensor.numel() - (name.endswith(("q_norm.weight", "k_norm.weight")) and tensor.numel())
        for name, tensor in held.items()
    )


def test_dummy_weights_have_the_shapes_of_a_checkpoint_and_repeat_by_seed(bare: Path) -> None:
    config = read_model_config(bare)
    write_checkpoint(bare)
    loaded = floats(load_weights(bare, config, torch.float32, CPU))
    first, again, other = (floats(dummy_weights(config, torch.float32, CPU, seed)) for seed in (0, 0, 1))
    assert [each.shape for each in first] == [each.shape for each in loaded]
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    matrices = [each for each in first if each.dim() == 2 and each.numel() > 1000]
    assert len({each.flatten()[:4].sum().item() for each in matrices}) >= len(matrices) - config.tied_embeddings
    assert all(abs(each.std().item() - 0.02) < 0.004 for each in matrices)
    assert all((each == 1.0).all() for each in first if each.dim() == 1), "norms are ones, whatever is stored for them"


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_any_config_runs_with_dummy_weights(quantization: str, bare: Path) -> None:
    shape = SlabShape(read_model_info(bare, LoadFormat.DUMMY).kv_layout(4, "float32"), 16)
    config = ExecutorConfig(bare, load_format=LoadFormat.DUMMY, quantization=quantization)
    slab = bytearray(shape.total_bytes)
    run = Bench(load_executor(config, slab, shape), shape, list(range(16)), slab, [])
    tokens = run.generate("a#0", list(range(20)), 6)
    assert run.generate("b#0", list(range(20)), 6, chunk=3) == tokens
    assert all(0 <= token < 300 for token in tokens)
    run.executor.close()


def test_int8_rounds_all_matrices_but_routers_and_embeddings(bare: Path) -> None:
    config = read_model_config(bare)
    write_checkpoint(bare)
    exact = load_weights(bare, config, torch.float32, CPU)
    rounded = load_weights(bare, config, torch.float32, CPU, quantization="int8")
    assert torch.equal(rounded.embeddings, exact.embeddings)
    assert isinstance(rounded.head, Int8Linear)
    for layer in rounded.layers:
        mlp = layer.mlp
        parts = (mlp.gate_up, mlp.down) if isinstance(mlp, DenseMLP) else (*mlp.gate_up, *mlp.down)
        assert all(isinstance(each, Int8Linear) for each in (layer.qkv, layer.out, *parts))
        assert isinstance(mlp, DenseMLP) or (mlp.stacked is None and isinstance(mlp.router, Linear))
    for ours, theirs in zip(floats(rounded), floats(exact), strict=True):
        step = theirs.abs().amax(-1, keepdim=True) / 127
        assert ((ours - theirs).abs() <= step * 0.501).all()


def test_rounding_some_rows_at_a_time_changes_nothing(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_model_config(bare)
    whole = floats(dummy_weights(config, torch.float32, CPU, quantization="int8"))
    monkeypatch.setattr("engine.weights._QUANTIZED_ROWS", 7)
    assert all(map(torch.equal, whole, floats(dummy_weights(config, torch.float32, CPU, quantization="int8"))))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_converted_while_they_are_copied(stored: torch.dtype, bare: Path) -> None:
    held, config = write_checkpoint(bare, stored), read_model_config(bare)
    seen: list[tuple[int, int]] = []
    weights = load_weights(bare, config, torch.float32, CPU, lambda *each: seen.append(each))
    assert torch.equal(weights.embeddings, held["model.embed_tokens.weight"].float())
    assert seen[-1] == (sum(each.nbytes for each in held.values()),) * 2
    assert [done for done, _ in seen] == sorted({done for done, _ in seen}), "no tensor is read twice"


@pytest.mark.parametrize("name", [name for name in VARIANTS if "mixtral" in name or "moe" in name])
def test_both_layouts_of_experts_load_to_the_same_weights(name: str, make_folder: Callable[..., Path]) -> None:
    folders = make_folder(name), make_folder(name, is_fused=True)
    assert any("experts.gate_up_proj" in each for each in load_file(folders[1] / "model.safetensors"))
    first, second = (floats(load_weights(folder, read_model_config(folder), torch.float32, CPU)) for folder in folders)
    assert all(map(torch.equal, first, second))


def test_one_expert_that_is_no_number_is_refused_by_its_place(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_folder("mixtral", is_fused=True), tmp_path / "model"))
    held = load_file(folder / "model.safetensors")
    held["model.layers.1.mlp.experts.down_proj"][4, 3, 2] = float("nan")
    save_file(held, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"tensor model.layers.1.mlp.experts.down_proj\[4\] holds NaN"):
        load_weights(folder, read_model_config(folder), torch.float32, CPU)


@pytest.mark.parametrize(
    ("name", "is_fused", "lost"),
    [
        ("mixtral", False, "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("mixtral", True, "model.layers.0.mlp.experts.down_proj"),
        ("mixtral", True, "model.layers.0.mlp.gate.weight"),
        ("qwen3_moe", False, "model.layers.1.mlp.experts.7.up_proj.weight"),
        ("qwen3_moe", False, "model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_missing_or_cut_part_of_an_expert_is_refused_by_name(
    name: str, is_fused: bool, lost: str, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make_folder(name, is_fused=is_fused), tmp_path / "model"))
    held = load_file(folder / "model.safetensors")
    save_file(held | {lost: held[lost][1:].clone()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=f"tensor {lost} has shape"):
        read_model_info(folder)
    del held[lost]
    save_file(held, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"tensor {lost} \(.*\) is missing"):
        read_model_info(folder)


def test_shards_that_are_gone_while_loading_harm_nothing_that_was_loaded(bare: Path) -> None:
    config = read_model_config(bare)
    held = write_checkpoint(bare)
    weights = load_weights(bare, config, torch.float32, CPU)
    (bare / "model.safetensors").unlink()
    shutil.copy(bare / "config.json", bare / "model.safetensors")
    assert torch.equal(weights.embeddings, held["model.embed_tokens.weight"])
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        load_weights(bare, config, torch.float32, CPU)


PEAK = """
import sys, pathlib, torch
from engine.hf_config import read_model_config
from engine.weights import load_weights
folder, quantization = pathlib.Path(sys.argv[1]), sys.argv[2]
config = read_model_config(folder)
def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) << 10
torch.ones(4).to(torch.int8), torch.mm(torch.ones(64, 64), torch.ones(64, 64))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
weights = load_weights(folder, config, torch.float32, torch.device("cpu"), None, quantization)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("kind", ["dense", "mixtral"])
def test_loading_takes_the_weights_of_memory_and_where_they_are_rounded_one_tensor(
    kind: str, quantization: str, tmp_path: Path
) -> None:
    sizes = ', "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 16000, '
    (tmp_path / "config.json").write_text(CONFIGS[kind] + sizes + REST)
    held = write_checkpoint(tmp_path)
    total, largest = sum(each.nbytes for each in held.values()), max(each.nbytes for each in held.values())
    embeddings = held["model.embed_tokens.weight"].nbytes
    weights = total if quantization == "none" else embeddings + (total - embeddings) // 4
    command = [sys.executable, "-c", PEAK, str(tmp_path), quantization]
    peak = int(subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout)
    scratch = 0 if quantization == "none" else largest
    # Beside them: 8 MiB of the shard that is being copied, the rounding panel, and code that is touched for the first
    # time. Nothing else is freed and taken again, so neither allocator nor number of threads matters.
    assert weights < peak < weights + scratch + (32 << 20) < weights + scratch + largest
