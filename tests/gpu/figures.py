"""What decode and prefill reach on a GPU, beside what a copy and a matrix product reach in the same run.

`python -m tests.gpu.figures` on an idle GPU with 40 GB; an 8B shape in bfloat16 with random weights. Each figure is a
median, and a fraction of the bar measured next to it: decode moves bytes (weights and KV once a step), prefill does
arithmetic.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from core.kv import KVLayout, SlabShape
from engine.graphs import CudaRecorder, GraphedDecode
from engine.hf_config import ModelConfig, read_model_config
from engine.lines import Chunk, Lines
from engine.memory import TORCH_DTYPES, KVMemory
from engine.model import Decoder
from engine.ops import Ops
from engine.weights import DenseMLP, Weights, dummy_weights

LLAMA_8B: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Figure:
    """A median time, the rate that it is (bytes or FLOP a second), and that rate as a fraction of the bar's."""

    name: str
    seconds: float
    rate: float
    of_bar: float


def median_s(run: Callable[[], object], device: torch.device, repeats: int = 20, warm: int = 3) -> float:
    """Seconds of a run on the device. Waits for it after each, so that the host's part shows where it is longer."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written a second by torch's copy."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_s(lambda: target.copy_(source), device)


def product_rate(device: torch.device, dtype: torch.dtype, lines: int, config: ModelConfig) -> float:
    """FLOP a second of the library's product of so many lines with an MLP's matrix."""
    sizes = (lines, config.hidden_size), (config.intermediate_size, config.hidden_size)
    x, weight = (torch.randn(each, device=device, dtype=dtype) for each in sizes)
    flop = 2 * lines * config.hidden_size * config.intermediate_size
    return flop / median_s(lambda: torch.nn.functional.linear(x, weight), device)


class Bench:
    """A model with random weights over a memory for `num_rows` rows of `context` tokens, which hold random KV."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: str,
        device: torch.device,
        num_rows: int,
        context: int,
        make_ops: Callable[[KVMemory], Ops],
    ) -> None:
        self.config, self.device = config, device
        self.width = -(-context // BLOCK_SIZE) + 1
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype)
        self.shape = SlabShape(layout, num_rows * self.width)
        slab = torch.zeros(self.shape.total_bytes, dtype=torch.uint8, device=device)
        self.memory = KVMemory(slab, self.shape)
        self.memory.blocks.normal_()
        self.weights = dummy_weights(config, TORCH_DTYPES[dtype], device)
        self.model = Decoder(config, self.weights, self.memory, make_ops(self.memory))
        order = torch.randperm(num_rows * self.width, generator=torch.Generator().manual_seed(1))
        self.tables = order.view(num_rows, self.width).to(device)

    def lines(self, rows: list[int], positions: list[int]) -> Lines:
        """Single lines. Shapes: both [N]."""
        at, places = (torch.tensor(each, device=self.device) for each in (rows, positions))
        blocks = self.tables[at, places // BLOCK_SIZE]
        token_ids = (at * 31 + places * 17) % self.config.vocab_size
        return Lines(token_ids, places, at, self.tables, blocks, places % BLOCK_SIZE, len(rows), (), max(positions) + 1)

    def decode_bytes(self, num_rows: int, context: int) -> int:
        """What a step must read: every matrix once, and the rows' KV."""
        return _matrix_bytes(self.weights) + num_rows * context * self.shape.layout.bytes_per_token

    def prefill_flop(self, num_tokens: int) -> int:
        """Products with matrices, causal attention, and the logits of one line."""
        config = self.config
        matrices = sum(_layer_sizes(self.weights))
        attention = 2 * config.num_layers * config.num_heads * config.head_dim * num_tokens**2
        return 2 * matrices * num_tokens + attention + 2 * config.hidden_size * config.vocab_size

    def decode(self, num_rows: int, context: int, bar: float) -> Figure:
        """A step of one token a row, replayed as a graph where there is CUDA."""
        lines = self.lines([*range(num_rows)], [context - 1] * num_rows)
        run = self._decoding(num_rows)
        seconds = median_s(lambda: run(lines), self.device)
        rate = self.decode_bytes(num_rows, context) / seconds
        return Figure(f"decode_b{num_rows}_of_copy", seconds, rate, rate / bar)

    def _decoding(self, num_rows: int) -> Callable[[Lines], Tensor | None]:
        if self.device.type != "cuda":
            return self.model.forward
        most = self.width * BLOCK_SIZE
        graphed = GraphedDecode(self.model.forward, num_rows, self.width, most, self.device, CudaRecorder())

        def run(lines: Lines) -> Tensor:
            logits = graphed.run(lines)
            assert logits is not None, "the step could not be recorded"
            return logits

        return run

    def prefill(self, num_tokens: int, bar: float) -> Figure:
        """A whole prompt of one row, and the logits after it."""
        chunks = (Chunk(0, num_tokens, 0, 0),)
        lines = replace(self.lines([0] * num_tokens, [*range(num_tokens)]), num_single=0, chunks=chunks)
        last = torch.tensor([num_tokens - 1], device=self.device)
        seconds = median_s(lambda: self.model.forward(lines, last, num_tokens), self.device)
        rate = self.prefill_flop(num_tokens) / seconds
        return Figure(f"prefill_{num_tokens}_of_gemm", seconds, rate, rate / bar)


def _layer_sizes(weights: Weights) -> list[int]:
    sizes = []
    for layer in weights.layers:
        assert isinstance(layer.mlp, DenseMLP)
        sizes += [each.weight.numel() for each in (layer.qkv, layer.out, layer.mlp.gate_up, layer.mlp.down)]
    return sizes


def _matrix_bytes(weights: Weights) -> int:
    element = weights.head.weight.element_size()
    return element * sum(_layer_sizes(weights)) + weights.head.nbytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: rows of a decode step, its context, and the length of a prompt that is prefilled."""

    rows: tuple[int, ...] = (1, 64)
    context: int = 1024
    prompt: int = 4096
    copied_bytes: int = 2 << 30


@torch.inference_mode()
def measure(
    config: ModelConfig, dtype: str, device: torch.device, make_ops: Callable[[KVMemory], Ops], plan: Plan
) -> list[Figure]:
    """All figures, each with its bar measured just before it."""
    bench = Bench(config, dtype, device, max(plan.rows), plan.context, make_ops)
    figures = [bench.decode(rows, plan.context, copy_rate(device, plan.copied_bytes)) for rows in plan.rows]
    del bench
    alone = Bench(config, dtype, device, 1, plan.prompt, make_ops)
    bar = product_rate(device, TORCH_DTYPES[dtype], plan.prompt, config)
    return [*figures, alone.prefill(plan.prompt, bar)]


def config_of(fields: dict[str, object]) -> ModelConfig:
    """As if it had been read from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(fields))
        return read_model_config(Path(folder))


def main() -> None:
    """Print the figures of an 8B shape as JSON."""
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: these figures are of a GPU")
    import triton

    from engine.triton_ops import TritonOps

    device = torch.device("cuda")
    found = measure(config_of(LLAMA_8B), "bfloat16", device, TritonOps, Plan())
    print(
        json.dumps(
            {
                "card": torch.cuda.get_device_name(device),
                "torch": torch.__version__,
                "triton": triton.__version__,
                "figures": [asdict(each) for each in found],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
