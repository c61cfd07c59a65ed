"""Makes an executor: checks what was asked, loads the weights, lays the model over a slab."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import ConfigError
from core.kv import SlabShape
from engine.executor import Executor
from engine.formats import FormatCompiler
from engine.guides import Guides
from engine.hf_config import ModelConfig, read_model_config
from engine.memory import TORCH_DTYPES, Digests, KVMemory, SlabBuffer
from engine.model import Decoder
from engine.model_info import LoadFormat
from engine.ops import TorchOps, ops_for
from engine.weights import Progress, Weights, dummy_weights, load_weights

QUANTIZATIONS = ("none", "int8")

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""Source: glibc's malloc.h and malloc.c."""


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """What an executor is made of. `dtype` is what it computes in and stores KV in; `num_threads` counts on a CPU.

    `quantization` is `none`, or `int8`: weights are rounded to 8 bits while they are loaded. `max_graph_rows` counts on
    CUDA: decode steps of up to so many rows are recorded as graphs and replayed.
    """

    model: Path
    dtype: str = "float32"
    device: str = "cpu"
    load_format: LoadFormat = LoadFormat.SAFETENSORS
    num_threads: int = 1
    quantization: str = "none"
    max_graph_rows: int = 256


def load_executor(
    config: ExecutorConfig,
    slab: SlabBuffer,
    shape: SlabShape,
    progress: Progress | None = None,
    digests: Digests | None = None,
) -> Executor:
    """Load the model and lay it over a slab, whose blocks are sealed with `digests` where it has its own.

    Raises ConfigError with what is wrong.
    """
    device = _device(config, shape)
    torch.set_num_threads(config.num_threads)
    _keep_freed_memory()
    model = read_model_config(config.model)
    _check_layout(model, shape)
    memory = KVMemory(slab, shape, digests)
    if memory.device.type != device.type:
        places = f"the KV slab lies on {memory.device.type!r} and the executor's device is {config.device!r}"
        raise ConfigError([f"{places}; KV must lie where it is computed"])
    weights = _weights(config, model, device, progress)
    ops = ops_for(memory, config.num_threads)
    # Torch's attention and a mixture of experts plan on the host, step by step: they cannot be recorded.
    records = device.type == "cuda" and model.moe is None and not isinstance(ops, TorchOps)
    compiler = FormatCompiler(config.model, model.vocab_size, model.eos_token_ids)
    guides = Guides(compiler, model.vocab_size, model.eos_token_ids)
    return Executor(Decoder(model, weights, memory, ops), memory, guides, config.max_graph_rows if records else 0)


def _device(config: ExecutorConfig, shape: SlabShape) -> torch.device:
    kind = config.device.partition(":")[0]
    problems = []
    if config.dtype not in TORCH_DTYPES:
        problems.append(f"dtype {config.dtype!r} is unknown; use one of {', '.join(TORCH_DTYPES)}")
    elif kind == "cpu" and config.dtype in ("float16", "bfloat16"):
        problems.append(f"dtype {config.dtype!r} is several times slower than float32 on a CPU; use 'float32' there")
    if kind not in ("cpu", "cuda"):
        problems.append(f"device {config.device!r} is not supported; use 'cpu' or 'cuda'")
    elif kind == "cuda" and not torch.cuda.is_available():
        problems.append(f"device {config.device!r} needs CUDA and torch finds none; use 'cpu' or a CUDA build of torch")
    if shape.layout.dtype != config.dtype:
        problems.append(f"the KV slab's dtype {shape.layout.dtype!r} must equal the executor's dtype {config.dtype!r}")
    if config.quantization not in QUANTIZATIONS:
        problems.append(f"quantization {config.quantization!r} is unknown; use one of {', '.join(QUANTIZATIONS)}")
    elif config.quantization != "none" and (kind != "cpu" or config.dtype != "float32"):
        problems.append(f"quantization {config.quantization!r} works on a CPU in float32 only")
    if config.num_threads < 1:
        problems.append(f"num_threads must be at least 1, got {config.num_threads}")
    if problems:
        raise ConfigError(problems)
    return torch.device(config.device)


def _keep_freed_memory() -> None:
    """Stop glibc from giving large freed temporaries back: each step would page them in anew.

    Measured: 2,000 page faults a prefill of 512 tokens at hidden size 256 before, none after. Nothing is changed where
    there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def _check_layout(model: ModelConfig, shape: SlabShape) -> None:
    layout = shape.layout
    asked = {
        "num_layers": (layout.num_layers, model.num_layers),
        "num_kv_heads": (layout.num_kv_heads, model.num_kv_heads),
        "head_dim": (layout.head_dim, model.head_dim),
    }
    differing = [(name, slab, own) for name, (slab, own) in asked.items() if slab != own]
    problems = [f"the KV slab has {name} {slab} and the model {own}" for name, slab, own in differing]
    if problems:
        raise ConfigError(problems)


def _weights(config: ExecutorConfig, model: ModelConfig, device: torch.device, progress: Progress | None) -> Weights:
    dtype = TORCH_DTYPES[config.dtype]
    if config.load_format == LoadFormat.DUMMY:
        return dummy_weights(model, dtype, device, quantization=config.quantization, num_threads=config.num_threads)
    return load_weights(config.model, model, dtype, device, progress, config.quantization, config.num_threads)
