"""Runs step plans: rows in, the model over paged memory, tokens and digests out."""

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import ConfigError, StepFailed
from core.ids import AttemptId
from core.kv import SlabShape
from core.request import SamplingParams, pack_tokens
from core.step import RowJoin, StepPlan, StepResult
from engine.hf_config import ModelConfig, read_model_config
from engine.memory import TORCH_DTYPES, KVMemory, SlabBuffer
from engine.model import Decoder
from engine.model_info import LoadFormat
from engine.rows import Row, Rows
from engine.sampler import sample
from engine.weights import Progress, Weights, dummy_weights, load_weights

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""Source: glibc's malloc.h and malloc.c."""


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """What an executor is made of. `dtype` is what it computes in and stores KV in; `num_threads` counts on a CPU."""

    model: Path
    dtype: str = "float32"
    device: str = "cpu"
    load_format: LoadFormat = LoadFormat.SAFETENSORS
    num_threads: int = 1


class Executor:
    """Runs plans in the order given, from one thread.

    Owns: the rows, and the bytes of the KV memory while a step runs.
    Invariant: rows of a failed step are forgotten, so a plan made ahead of the failure cannot run on half a state.
    """

    def __init__(self, model: Decoder, memory: KVMemory) -> None:
        self._model = model
        self._memory = memory
        layout = memory.shape.layout
        self._rows = Rows(memory.shape.num_blocks, layout.block_size, model.config.vocab_size)

    @property
    def num_rows(self) -> int:
        """Rows resident now."""
        return len(self._rows)

    def run(self, plan: StepPlan) -> StepResult:
        """Run one step. Raises StepFailed when it cannot be run; nothing of it may be used then."""
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                self._apply_changes(plan)
                sampled = self._advance(plan)
                digests = tuple(self._memory.digest(block) for block in plan.seal)
        except (StepFailed, RuntimeError) as error:
            for attempt in (*plan.attempts, *(join.attempt for join in plan.joined)):
                self._rows.leave(attempt)
            if isinstance(error, StepFailed):
                raise
            raise StepFailed(f"step {plan.step}: {error}") from error
        attempts, token_ids = tuple(sampled), tuple(sampled.values())
        return StepResult(plan.step, attempts, token_ids, plan.seal, digests, time.perf_counter() - started)

    def warm_up(self) -> None:
        """Run a tiny prefill and a decode step, so that the first request does not pay for first calls.

        Only while no row is resident and no block holds anything: block 0 is written, and cleared again.
        """
        assert not len(self._rows), "warm_up runs before the first plan"
        attempt, params = AttemptId("warm-up#0"), SamplingParams(max_tokens=2, top_k=2, top_p=0.9)
        num_tokens = max(1, self._memory.shape.layout.block_size - 1)
        join = RowJoin(attempt, pack_tokens([0] * num_tokens), 0, params, (0,), (0,))
        self.run(StepPlan(0, (attempt,), (num_tokens,), joined=(join,), seal=(0,)))
        if num_tokens < self._memory.shape.layout.block_size:
            self.run(StepPlan(0, (attempt,), (1,)))
        self.run(StepPlan(0, (), (), left=(attempt,)))
        self._memory.start_blocks((0,), (0,))

    def close(self) -> None:
        """Let go of the slab. Nothing can be run afterwards; twice is fine."""
        self._memory.close()

    def _apply_changes(self, plan: StepPlan) -> None:
        size = self._memory.shape.layout.block_size
        for attempt in plan.left:
            self._rows.leave(attempt)
        for join in plan.joined:
            self._rows.join(join)
            self._memory.start_blocks(join.block_ids, join.generations, num_filled=-(-join.num_computed // size))
        for growth in plan.grown:
            self._rows.grow(growth)
            self._memory.start_blocks(growth.block_ids, growth.generations)

    def _advance(self, plan: StepPlan) -> dict[AttemptId, int]:
        """Run the plan's rows; the tokens that were sampled, in the plan's order."""
        due = [(self._rows.due(*each), each[1]) for each in zip(plan.attempts, plan.num_tokens, strict=True)]
        if not due:
            return {}
        decoding = sorted((row for row, num in due if num == 1), key=lambda row: row.num_computed)
        chunked = [(row, num) for row, num in due if num > 1]
        logits = self._model.forward(self._model.batch(self._rows, decoding, chunked))
        for row, num in due:
            row.num_computed += num
        sampling = [row for row in (*decoding, *(row for row, _ in chunked)) if row.num_computed == len(row.token_ids)]
        self._append_samples(sampling, logits)
        finished = {row.attempt for row in sampling}
        return {row.attempt: row.token_ids[-1] for row, _ in due if row.attempt in finished}

    def _append_samples(self, sampling: Sequence[Row], logits: torch.Tensor) -> None:
        if not sampling:
            return
        token_ids = sample(logits, [row.sampling for row in sampling], [len(row.token_ids) for row in sampling])
        for row, token in zip(sampling, token_ids, strict=True):
            row.token_ids.append(token)


def load_executor(
    config: ExecutorConfig, slab: SlabBuffer, shape: SlabShape, progress: Progress | None = None
) -> Executor:
    """Load the model and lay it over a slab. Raises ConfigError with what is wrong."""
    device = _device(config, shape)
    torch.set_num_threads(config.num_threads)
    _keep_freed_memory()
    model = read_model_config(config.model)
    _check_layout(model, shape)
    memory = KVMemory(slab, shape)
    if memory.device.type != device.type:
        places = f"the KV slab lies on {memory.device.type!r} and the executor's device is {config.device!r}"
        raise ConfigError([f"{places}; KV must lie where it is computed"])
    weights = _weights(config, model, device, progress)
    return Executor(Decoder(model, weights, memory), memory)


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
        return dummy_weights(model, dtype, device)
    return load_weights(config.model, model, dtype, device, progress)
