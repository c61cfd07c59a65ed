"""Step times by a roofline: the larger of what arithmetic takes and what memory takes. For any GPU and model shape."""

from dataclasses import dataclass, field
from math import isfinite

from cluster.simulated.hardware import GPU, ModelShape, kv_bytes_per_token
from cluster.simulated.truth import Chunks, belief_of, pairs_of
from core.costs import NodeCosts
from core.errors import ConfigError

MFU = 0.5
"""Share of the peak arithmetic that engines reach on prompts: about 45 % is fitted for vLLM, over 65 % are measured for
large matrices alone."""

MBU = 0.7
"""Share of the memory bandwidth that engines reach decoding: 70 to 77 % are published for 70B models on one H200."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What of a data sheet is reached. `overhead_s` is what each step takes beside (launches, sampling, scheduling)."""

    mfu: float = MFU
    mbu: float = MBU
    link_share: float = 0.75
    overhead_s: float = 0.0


PERFECT = Efficiency(1.0, 1.0, 1.0)


@dataclass(slots=True)
class RooflineTruth:
    """`num_gpus` of a kind, tensor parallel, with a model on them.

    Arithmetic: 2·N per token, 2·L·H·d_h·S² for the causal attention of S prompt tokens (of a chunk: what it adds),
    2·d·V for each prompt's and row's logits. Memory: all weights, and the KV that rows and earlier chunks attend to.
    Tensor parallel: two ring all-reduces a layer of every token's activations over the GPUs' links, not overlapped.

    Mixed steps: sums of both on each side of the roofline, so decode rows hide behind prompts as far as they can.
    It covers every range, so nothing is extrapolated.
    """

    gpu: GPU
    shape: ModelShape
    num_gpus: int = 1
    efficiency: Efficiency = Efficiency()
    bytes_per_weight: float = 2.0
    kv_dtype: str = "bfloat16"
    num_extrapolated: int = 0
    _per_pair: float = field(init=False, default=0.0)
    _weight_bytes: float = field(init=False, default=0.0)
    _kv_bytes: float = field(init=False, default=0.0)
    _flops: float = field(init=False, default=0.0)
    _bytes_per_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        eff = self.efficiency
        shares = (("MFU", eff.mfu), ("MBU", eff.mbu), ("share of the link", eff.link_share))
        problems = [f"{name} {share!r} must be above 0 and at most 1" for name, share in shares if not 0 < share <= 1]
        if not (isfinite(eff.overhead_s) and eff.overhead_s >= 0):
            problems.append(f"an overhead of {eff.overhead_s!r} s per step")
        if self.num_gpus < 1:
            problems.append(f"{self.num_gpus} GPUs")
        if self.bytes_per_weight < 2 and self.gpu.fp8_flops is None:
            problems.append(f"{self.gpu.name} has no fp8 arithmetic")
        if problems:
            raise ConfigError(problems)
        shape, peak = self.shape, self.gpu.fp8_flops if self.bytes_per_weight < 2 else self.gpu.bf16_flops
        assert peak is not None
        self._per_pair = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim
        self._weight_bytes = shape.weight_bytes(self.bytes_per_weight)
        self._kv_bytes = kv_bytes_per_token(shape, self.kv_dtype)
        self._flops = peak * self.num_gpus * eff.mfu
        self._bytes_per_s = self.gpu.memory_bytes_per_s * self.num_gpus * eff.mbu

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        """By the roofline."""
        shape, num_tokens = self.shape, num_rows + sum(tokens for tokens, _ in chunks)
        operations = 2.0 * shape.num_parameters * num_tokens + self._per_pair * pairs_of(chunks)
        operations += 2.0 * shape.num_head_parameters * (len(chunks) + num_rows)
        moved = self._weight_bytes + self._kv_bytes * (row_context + sum(before for _, before in chunks))
        busy_s = max(operations / self._flops, moved / self._bytes_per_s)
        return busy_s + self._all_reduce_s(num_tokens) + self.efficiency.overhead_s

    def belief(self) -> NodeCosts:
        """The straight line closest to it."""
        return belief_of(self.step_s)

    def _all_reduce_s(self, num_tokens: int) -> float:
        if self.num_gpus == 1:
            return 0.0
        moved = 2 * self.shape.num_layers * num_tokens * self.shape.width * 2.0
        ring = 2.0 * (self.num_gpus - 1) / self.num_gpus
        return moved * ring / (self.gpu.link_bytes_per_s * self.efficiency.link_share)
