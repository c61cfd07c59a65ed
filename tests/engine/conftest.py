"""Tiny random checkpoints as transformers writes them, and executors over anonymous memory."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from core.ids import AttemptId
from core.kv import SlabShape, num_blocks
from core.request import SamplingParams, pack_tokens
from core.step import RowJoin, StepPlan
from engine.batch import Batch
from engine.executor import Executor
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import read_model_info

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.5,
    "original_max_position_embeddings": 128,
    "short_factor": [1.0, 1.2, 1.9, 3.0],
    "long_factor": [1.0, 4.0, 9.0, 20.0],
}

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama, 8 heads on 8": ("llama", {"num_key_value_heads": 8}),
    "llama, 8 heads on 2": ("llama", {"num_key_value_heads": 2}),
    "llama, 8 heads on 1": ("llama", {"num_key_value_heads": 1}),
    "llama, wide heads, tied": ("llama", {"head_dim": 24, "tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}),
    "llama, llama3": ("llama", {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500_000.0}}),
    "llama, yarn": ("llama", {"rope_parameters": {**YARN_ROPE, "rope_theta": 10_000.0}}),
    "llama, dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}}),
    "llama, longrope": ("llama", {"rope_parameters": {**LONGROPE, "rope_theta": 10_000.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 13, "head_dim": 12}),
    "qwen2": ("qwen2", {}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "gemma": (
        "gemma",
        {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 8}),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "head_dim": 16}
        | {"norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "qwen2, odd sizes": (
        "qwen2",
        {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 37}
        | {"vocab_size": 131},
    ),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, 8 heads of 80 on 1": ("qwen3", {"head_dim": 80, "num_key_value_heads": 1}),
    "qwen3, biases, tied": ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares with the reference is slow: importing that takes seconds."""
    for item in items:
        if "transformers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two test processes with two threads each are slower than with one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """Imported once: it takes seconds."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    return transformers


@pytest.fixture(scope="session")
def make_folder(transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes (once) the folder of a variant, by its name in VARIANTS. `is_fused`: experts as transformers has them."""
    made: dict[tuple[str, str, bool], Path] = {}

    def make(name: str, max_shard_size: str = "1GB", is_fused: bool = False) -> Path:
        key = (name, max_shard_size, is_fused)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("model")
            model = random_model(transformers, *VARIANTS[name], seed=zlib.crc32(name.encode()))
            model.save_pretrained(made[key], max_shard_size=max_shard_size, save_original_format=not is_fused)
        return made[key]

    return make


def random_model(transformers: ModuleType, family: str, changes: dict[str, object], seed: int) -> torch.nn.Module:
    """A tiny model of a family, whose parameters are all random: norms and biases too."""
    config = transformers.AutoConfig.for_model(family, **{**TINY, **changes})
    torch.manual_seed(seed)
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture(scope="session")
def reference(transformers: ModuleType) -> Callable[[Path, Tensor, str], Tensor]:
    """Logits of transformers for whole sequences. Shapes: [rows, tokens] -> [rows, tokens, vocab]."""
    loaded: dict[tuple[Path, str], torch.nn.Module] = {}

    def logits(folder: Path, token_ids: Tensor, dtype: str) -> Tensor:
        if (folder, dtype) not in loaded:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="sdpa", experts_implementation="eager"
            )
            loaded[folder, dtype] = _lifted(model.eval().to(getattr(torch, dtype)))
        with torch.inference_mode():
            return loaded[folder, dtype](token_ids).logits

    return logits


def _lifted(model: torch.nn.Module) -> torch.nn.Module:
    """transformers normalises in float32 even in a float64 model, and Gemma's embeddings are scaled by a float32 root;

    here both in the model's own type, to compare closely.
    """

    def forward(norm: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        is_gemma = type(norm).__name__ == "GemmaRMSNorm"
        eps, weight = (norm.eps, 1.0 + norm.weight) if is_gemma else (norm.variance_epsilon, norm.weight)
        return lambda hidden: weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward(module)
        if hasattr(module, "embed_scale"):
            module.embed_scale.fill_(module.scalar_embed_scale)
    return model


@dataclass
class Bench:
    """An executor and a counter that hands out blocks, as a node's pool would, in an order of its own."""

    executor: Executor
    shape: SlabShape
    free: list[int]
    slab: bytearray | Tensor
    logits: list[Tensor]
    tables: dict[AttemptId, tuple[int, ...]] = field(default_factory=dict)
    step: int = 0

    def join(
        self, name: str, token_ids: list[int], *, num_computed: int = 0, room: int = 16, **sampling: object
    ) -> RowJoin:
        """A row with blocks for its tokens and `room` more; greedy unless told otherwise."""
        params = SamplingParams(**{"max_tokens": 64, "temperature": 0.0, **sampling})
        blocks = tuple(self.free.pop() for _ in range(num_blocks(len(token_ids) + room, self.shape.layout.block_size)))
        self.tables[AttemptId(name)] = blocks
        generations = tuple(range(1, len(blocks) + 1))
        return RowJoin(
            AttemptId(name), pack_tokens(token_ids), num_computed, params, blocks, generations, len(token_ids)
        )

    def run(self, *advances: tuple[str, int], **changes: object) -> dict[str, int]:
        """Run one step; the tokens that were sampled."""
        self.step += 1
        attempts = tuple(AttemptId(name) for name, _ in advances)
        result = self.executor.run(StepPlan(self.step, attempts, tuple(num for _, num in advances), **changes))
        assert result.step == self.step
        return dict(zip(result.attempts, result.token_ids, strict=True))

    def generate(
        self, name: str, token_ids: list[int], num_tokens: int, *, chunk: int = 1000, **join: object
    ) -> list[int]:
        """Run one row alone: prefill in chunks, then decode."""
        joined = self.join(name, token_ids, room=num_tokens, **join)
        done, changes, out = joined.num_computed, {"joined": (joined,)}, []
        while len(out) < num_tokens:
            num = min(chunk, len(token_ids) - done) if done < len(token_ids) else 1
            out += self.run((name, num), **changes).values()
            done, changes = done + num, {}
        self.run(left=(AttemptId(name),))
        return out


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Makes executors over a folder; closes them afterwards."""
    made: list[Bench] = []

    def make(folder: Path, dtype: str = "float64", block_size: int = 4, num_blocks: int = 64) -> Bench:
        layout = read_model_info(folder).kv_layout(block_size, dtype)
        shape = SlabShape(layout, num_blocks)
        slab = bytearray(shape.total_bytes)
        executor = load_executor(ExecutorConfig(folder, dtype), slab, shape)
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).tolist()
        made.append(Bench(executor, shape, order, slab, record(executor)))
        return made[-1]

    yield make
    for each in made:
        each.executor.close()


def record(executor: Executor) -> list[Tensor]:
    """A list that takes up the logits of each step from now on, whether it is computed anew or replayed."""
    forward = executor._forward
    logits: list[Tensor] = []

    def recorded(batch: Batch) -> Tensor:
        logits.append(forward(batch))
        return logits[-1]

    executor._forward = recorded  # type: ignore[method-assign]
    return logits
