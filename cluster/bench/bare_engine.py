"""An executor without a cluster around it: a model over a pool of its own, to be measured."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from core.kv import KVLayout, SlabShape
from engine.executor import Executor
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, ModelInfo, read_model_info
from engine.profile import StepProbe, fill
from kv_transfer.slab import Slab


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What is measured."""

    model: Path
    dtype: str = "float32"
    device: str = "cpu"
    num_threads: int = 1
    quantization: str = "none"
    block_size: int = 16
    load_format: LoadFormat = LoadFormat.SAFETENSORS


class BareEngine:
    """A loaded executor; a context manager. Owns: its KV memory, every byte of which was written once."""

    def __init__(self, choice: EngineChoice, num_blocks: int) -> None:
        self.choice = choice
        self.info: ModelInfo = read_model_info(choice.model, choice.load_format)
        self.layout: KVLayout = self.info.kv_layout(choice.block_size, choice.dtype)
        self.shape = SlabShape(self.layout, num_blocks)
        config = ExecutorConfig(
            choice.model,
            choice.dtype,
            choice.device,
            num_threads=choice.num_threads,
            quantization=choice.quantization,
            load_format=choice.load_format,
        )
        self._slab: Slab | None = None
        if choice.device == "cpu":
            self._slab = Slab.anonymous(self.shape, "bench")
            fill(self._slab.buffer)
            self.executor: Executor = load_executor(config, self._slab.buffer, self.shape)
        else:
            memory = torch.full((self.shape.total_bytes,), 0x3C, dtype=torch.uint8, device=choice.device)
            self.executor = load_executor(config, memory, self.shape)

    def probe(self) -> StepProbe:
        """What times its steps."""
        return StepProbe(self.executor, self.layout.block_size, self.shape.num_blocks, self.info.max_model_len)

    def close(self) -> None:
        """Give the memory back. Twice is fine."""
        self.executor.close()
        if self._slab is not None:
            self._slab.close()

    def __enter__(self) -> "BareEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
