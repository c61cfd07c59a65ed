"""How large the KV pool of each node is: what its operator says, or what is left after weights and activations."""

import math
from dataclasses import dataclass

from cluster.live.config import LiveConfig, NodeSettings
from cluster.live.gpus import is_cuda
from core.errors import ConfigError
from core.kv import DTYPE_BYTES, KVLayout, num_blocks
from engine.checkpoint import expected_tensors
from engine.hf_config import ModelConfig, read_model_config

PROCESS_BYTES = 400 << 20
"""A node's process without a model: interpreter, torch and gRPC. Measured: 320 MiB after the first step."""

CUDA_BYTES = 1 << 30
"""What a node takes of its GPU besides weights, activations and KV: the context, library workspaces and recorded
graphs. A guess on the safe side: nothing has been measured on a GPU yet."""

LOGITS_COPIES = 4
"""Rows of the vocabulary's size that live at once while tokens are sampled."""


@dataclass(frozen=True, slots=True)
class KVPool:
    """The pool of one node. `reason` says what made it this large."""

    layout: KVLayout
    num_blocks: int
    max_model_len: int
    reason: str

    @property
    def num_tokens(self) -> int:
        """Tokens that it holds."""
        return self.num_blocks * self.layout.block_size

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.num_blocks * self.layout.bytes_per_block

    @property
    def num_full_requests(self) -> int:
        """Requests of the full length that it holds at once."""
        return self.num_blocks // num_blocks(self.max_model_len, self.layout.block_size)

    def sentence(self) -> str:
        """For people, at the start."""
        layout = self.layout
        return (
            f"KV of each node: {layout.bytes_per_token:,} bytes a token; {self.num_blocks:,} blocks of "
            f"{layout.block_size} tokens = {self.num_tokens:,} tokens in {self.num_bytes / 2**20:,.1f} MiB "
            f"({self.reason}); {self.num_full_requests} requests of {self.max_model_len:,} tokens fit"
        )


@dataclass(frozen=True, slots=True)
class Needs:
    """What a node takes besides its pool, in bytes."""

    weights: int
    activations: int
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        """All of it, the process included."""
        return self.weights + self.activations + self.process


def pool_of(live: LiveConfig, free_bytes: int, num_sharing: int | None = None) -> KVPool:
    """The pool of every node of a cluster. Raises ConfigError where it cannot hold what it must, or is not there.

    `free_bytes`: of the memory that `num_sharing` nodes share: this host's and all nodes (None), or of one GPU, the
    least free one, and the nodes on the fullest. All pools are equal, so that any node can take another's rows.
    """
    num_sharing = num_sharing or len(live.slots)
    config = read_model_config(live.node.model)
    layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, live.node.block_size, live.node.dtype)
    longest = live.node.max_model_len or config.max_model_len
    blocks, reason = _blocks(live, config, layout, longest, free_bytes // num_sharing)
    pool = KVPool(layout, blocks, longest, reason)
    problems = _too_small(live.node, pool) or _too_large(live, pool, free_bytes, num_sharing)
    if problems:
        raise ConfigError(problems)
    return pool


def needs_of(config: ModelConfig, live: LiveConfig) -> Needs:
    """Weights in the type that is computed in, unquantised; and the largest step's intermediate results."""
    item = DTYPE_BYTES[live.node.dtype]
    weights = sum(math.prod(shape) for shape in expected_tensors(config).values()) * item
    rows = max(slot.mix.max_decode_rows for slot in live.slots)
    lines = rows + max(slot.mix.prefill_tokens_per_step for slot in live.slots)
    heads, size = config.num_heads, config.head_dim
    line = 4 * config.hidden_size + 3 * config.intermediate_size + 2 * (heads + config.num_kv_heads) * size
    gathered = 2 * config.max_model_len * config.num_kv_heads * size
    activations = (lines * line + gathered) * item + LOGITS_COPIES * rows * config.vocab_size * 4
    return Needs(weights, activations, CUDA_BYTES if is_cuda(live.node.device) else PROCESS_BYTES)


def _blocks(live: LiveConfig, config: ModelConfig, layout: KVLayout, longest: int, own_bytes: int) -> tuple[int, str]:
    node = live.node
    if node.num_kv_blocks is not None:
        return node.num_kv_blocks, "--num-gpu-blocks-override"
    if node.kv_cache_memory_bytes is not None:
        return node.kv_cache_memory_bytes // layout.bytes_per_block, "--kv-cache-memory-bytes"
    rows = max(slot.mix.max_decode_rows for slot in live.slots)
    enough = rows * num_blocks(longest, layout.block_size)
    share = int(own_bytes * node.memory_utilization)
    left = max(0, share - needs_of(config, live).total) // layout.bytes_per_block
    if enough <= left:
        return enough, f"as much as {rows} rows can fill"
    return left, f"what a share of {share >> 20} MiB leaves, --gpu-memory-utilization {node.memory_utilization:g}"


def _too_small(node: NodeSettings, pool: KVPool) -> list[str]:
    """An explicit number of blocks is taken as it is: requests that it cannot hold are refused one by one."""
    block_bytes, longest = pool.layout.bytes_per_block, pool.max_model_len
    if node.num_kv_blocks is not None:
        return []
    least = num_blocks(longest, pool.layout.block_size) * block_bytes
    asked = node.kv_cache_memory_bytes
    if asked is not None and pool.num_blocks < 1:
        return [f"--kv-cache-memory-bytes ({asked}) must hold at least one block of {block_bytes} bytes"]
    if pool.num_full_requests >= 1:
        return []
    found = f"the KV pool of each node ({pool.num_tokens} tokens: {pool.reason}) holds not one request of {longest}"
    mend = "raise --kv-cache-memory-bytes" if asked is not None else "raise --gpu-memory-utilization, free memory"
    return [f"{found} tokens, which takes {least} bytes; {mend} or lower --max-model-len"]


def _too_large(live: LiveConfig, pool: KVPool, free_bytes: int, num_sharing: int) -> list[str]:
    wanted = num_sharing * pool.num_bytes
    if wanted <= free_bytes or live.ray.address is not None:
        return []
    block_bytes, memory = pool.layout.bytes_per_block, "a GPU" if is_cuda(live.node.device) else "memory"
    pools = f"the KV pools of {num_sharing} nodes ({pool.num_blocks} blocks of {block_bytes} bytes each)"
    lower = "--kv-cache-memory-bytes" if live.node.num_kv_blocks is None else "--num-gpu-blocks-override"
    return [f"{pools} need {wanted >> 20} MiB and {free_bytes >> 20} MiB of {memory} are free; lower {lower}"]
