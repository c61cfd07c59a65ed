"""GPUs by their data sheets and models by their shapes: what a roofline is made of."""

from dataclasses import dataclass

from core.errors import ConfigError
from core.kv import DTYPE_BYTES, KVLayout

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True, slots=True)
class GPU:
    """One GPU, dense figures of its data sheet; `fp8_flops` is None where it has none. `link_bytes_per_s`: one way to
    another GPU of the same machine."""

    name: str
    bf16_flops: float
    fp8_flops: float | None
    memory_bytes_per_s: float
    memory_bytes: float
    link_bytes_per_s: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("A100", 312 * TERA, None, 2.04 * TERA, 80 * GIGA, 300 * GIGA),
        GPU("H100", 989 * TERA, 1979 * TERA, 3.35 * TERA, 80 * GIGA, 450 * GIGA),
        GPU("H200", 989 * TERA, 1979 * TERA, 4.8 * TERA, 141 * GIGA, 450 * GIGA),
        GPU("B200", 2250 * TERA, 4500 * TERA, 8.0 * TERA, 180 * GIGA, 900 * GIGA),
        GPU("L40S", 362 * TERA, 733 * TERA, 0.864 * TERA, 48 * GIGA, 32 * GIGA),
    )
}
"""Source: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM, HGX B200 and L40S (whose link is PCIe 4.0 x16)."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense transformer. `num_parameters` without embeddings; the last projection is `width` × `vocab_size` more."""

    name: str
    num_parameters: float
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def num_head_parameters(self) -> float:
        """Of the projection to the vocabulary."""
        return float(self.width * self.vocab_size)

    def weight_bytes(self, bytes_per_weight: float) -> float:
        """Bytes that a step reads."""
        return (self.num_parameters + self.num_head_parameters) * bytes_per_weight

    def kv(self, block_size: int, dtype: str = "bfloat16") -> KVLayout:
        """The layout of its KV."""
        return KVLayout(self.num_layers, self.num_kv_heads, self.head_dim, block_size, dtype)


def _multi_head(name: str, num_layers: int, width: int, vocab_size: int) -> ModelShape:
    """As many KV heads as heads, all of 128, and a feed-forward part four times as wide: OPT and BLOOM."""
    heads = width // 128
    return ModelShape(name, 12.0 * num_layers * width**2, num_layers, width, heads, heads, 128, vocab_size)


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3-8b", 6.98e9, 32, 4096, 32, 8, 128, 128_256),
        ModelShape("llama-3-70b", 68.45e9, 80, 8192, 64, 8, 128, 128_256),
        ModelShape("llama-2-70b", 68.45e9, 80, 8192, 64, 8, 128, 32_000),
        _multi_head("opt-13b", 40, 5120, 50_272),
        _multi_head("opt-66b", 64, 9216, 50_272),
        _multi_head("opt-175b", 96, 12_288, 50_272),
        _multi_head("bloom-176b", 70, 14_336, 250_880),
    )
}
"""Source: the models' published configurations (Meta's Llama and OPT, BigScience's BLOOM)."""


def gpu_named(name: str) -> GPU:
    """A GPU of the table. Raises ConfigError."""
    if name not in GPUS:
        raise ConfigError([f"no GPU {name!r} is known; there are {', '.join(GPUS)}"])
    return GPUS[name]


def shape_named(name: str) -> ModelShape:
    """A model of the table. Raises ConfigError."""
    if name not in SHAPES:
        raise ConfigError([f"no model shape {name!r} is known; there are {', '.join(SHAPES)}"])
    return SHAPES[name]


def pool_blocks(
    gpu: GPU, shape: ModelShape, kv: KVLayout, num_gpus: int = 1, bytes_per_weight: float = 2.0, share: float = 0.92
) -> int:
    """KV blocks in `share` of the memory of so many GPUs, beside the weights. Raises ConfigError where there is no
    room."""
    free = share * gpu.memory_bytes * num_gpus - shape.weight_bytes(bytes_per_weight)
    number = int(free // kv.bytes_per_block)
    if number < 1:
        raise ConfigError([f"{shape.name} leaves no room for KV on {num_gpus} × {gpu.name}"])
    return number


def kv_bytes_per_token(shape: ModelShape, dtype: str) -> float:
    """Keys and values of one token over all layers."""
    return 2.0 * shape.num_layers * shape.num_kv_heads * shape.head_dim * DTYPE_BYTES[dtype]
