"""What a Hugging Face folder holds, by reading headers only: tensors, their shards and a digest. Imports no torch."""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from core.errors import ConfigError
from engine.families import FAMILIES, Family
from engine.fields import read_json
from engine.hf_config import ModelConfig, MoEConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FUSED_GATE_UP = "experts.gate_up_proj"
FUSED_DOWN = "experts.down_proj"
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Weight types that can be converted, by the name safetensors gives them, and their bytes."""

_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit. Source: safetensors format description."""
_SAMPLE_BYTES = 4096
_NUM_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as a shard's header describes it; `start` and `end` count from the shard's first byte."""

    name: str
    shard: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors of a folder, sorted by name. `promised` is the shard that the index names for each, if there is one.

    A tensor that lies elsewhere than promised counts; of two copies the promised one does.
    """

    folder: Path
    shards: tuple[Path, ...]
    tensors: dict[str, TensorEntry]
    promised: dict[str, Path]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Find the shards and read their headers. Raises ConfigError naming each that is missing, cut or malformed."""
    shards, promised = _shards(folder)
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise ConfigError([f"shard {shard} is named in {INDEX} and missing; fetch it again" for shard in missing])
    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        for name, entry in _read_header(shard).items():
            if name not in tensors or promised.get(name) == shard:
                tensors[name] = entry
    return Checkpoint(folder, shards, dict(sorted(tensors.items())), promised)


def _shards(folder: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """The shards, and which of them the index promises each tensor in (empty without an index).

    A single file goes before an index, as it does for transformers.
    """
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,), {}
    if (folder / INDEX).exists():
        promised = _read_index(folder)
        return tuple(sorted(set(promised.values()))), promised
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        found = f"{folder} holds pickled weights only ({', '.join(pickles[:3])})"
        advice = "convert them with transformers' save_pretrained"
        raise ConfigError([f"{found}; unpickling runs code, so they are refused: {advice}"])
    advice = "fetch them, or use load format 'dummy'"
    raise ConfigError([f"{folder} holds no weights: neither {SINGLE} nor {INDEX}; {advice}"])


def _read_index(folder: Path) -> dict[str, Path]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(s, str) for s in weight_map.values()):
        raise ConfigError([f"{index}: weight_map must map tensor names to files; fetch the file again"])
    outside = sorted({shard for shard in weight_map.values() if Path(shard).name != shard})
    if outside:
        raise ConfigError([f"{index}: shard {shard!r} is not a plain file name; fetch it again" for shard in outside])
    return {name: folder / shard for name, shard in weight_map.items()}


def _read_header(shard: Path) -> dict[str, TensorEntry]:
    """The tensors of one shard. Source: safetensors format: u64 header length, JSON header, data."""
    try:
        with shard.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(file.read(length))
        first = 8 + length
        entries = {name: _entry(name, shard, field, first) for name, field in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError([f"shard {shard} is not a safetensors file ({error}); fetch it again"]) from error
    expected = max((entry.end for entry in entries.values()), default=first)
    if (actual := shard.stat().st_size) != expected:
        sizes = f"has {actual} bytes and its header says {expected}"
        raise ConfigError([f"shard {shard} {sizes}; it is cut short or damaged, fetch it again"])
    return entries


def _entry(name: str, shard: Path, field: dict[str, list[int]], first: int) -> TensorEntry:
    start, end = map(int, field["data_offsets"])
    if not 0 <= start <= end:
        raise ValueError(f"{name} lies from {start} to {end}")
    return TensorEntry(name, shard, str(field["dtype"]), tuple(map(int, field["shape"])), first + start, first + end)


class ExpertLayout(StrEnum):
    """How a checkpoint holds the experts of a layer: a tensor for each, as published, or all in one.

    FUSED is what transformers 5 computes with, and what it writes when told not to restore the published names: one
    tensor [experts, 2 inner, hidden] for gate and up, one [experts, hidden, inner] for down.
    """

    SEPARATE = "separate"
    FUSED = "fused"


def expert_layout(checkpoint: Checkpoint) -> ExpertLayout:
    """What a checkpoint's tensor names tell of its experts; SEPARATE where it has none."""
    is_fused = any(name.endswith(FUSED_GATE_UP) for name in checkpoint.tensors)
    return ExpertLayout.FUSED if is_fused else ExpertLayout.SEPARATE


def moe_prefix(config: ModelConfig, layer: int, layout: ExpertLayout) -> str:
    """What the names of a sparse layer's tensors begin with."""
    module = FAMILIES[config.family].moe_module if layout is ExpertLayout.SEPARATE else "mlp"
    return f"model.layers.{layer}.{module}."


def expected_tensors(config: ModelConfig, layout: ExpertLayout = ExpertLayout.SEPARATE) -> dict[str, tuple[int, ...]]:
    """Every tensor that this model reads, by its Hugging Face name, with its shape."""
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (config.hidden_size,)}
    shapes[EMBEDDINGS] = (config.vocab_size, config.hidden_size)
    if not config.tied_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    for layer in range(config.num_layers):
        shapes |= _attention_tensors(config, f"model.layers.{layer}.")
        if config.moe is not None and config.moe.sparse[layer]:
            prefix = moe_prefix(config, layer, layout)
            shapes |= _expert_tensors(FAMILIES[config.family], config.hidden_size, config.moe, prefix, layout)
        else:
            shapes |= _mlp_tensors(config, f"model.layers.{layer}.mlp.")
    return shapes


def _attention_tensors(config: ModelConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    hidden, dim = config.hidden_size, config.head_dim
    q, kv = config.num_heads * dim, config.num_kv_heads * dim
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": dim, "self_attn.k_norm": dim}
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}{name}.weight": (size,) for name, size in norms.items()}
    for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        shapes |= _linear_tensors(f"{prefix}self_attn.{name}", rows, hidden, config.qkv_bias)
    return shapes | _linear_tensors(f"{prefix}self_attn.o_proj", hidden, q, config.out_bias)


def _mlp_tensors(config: ModelConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    shapes = _linear_tensors(f"{prefix}gate_proj", inner, hidden, bias)
    shapes |= _linear_tensors(f"{prefix}up_proj", inner, hidden, bias)
    return shapes | _linear_tensors(f"{prefix}down_proj", hidden, inner, bias)


def _linear_tensors(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight


def _expert_tensors(
    family: Family, hidden: int, moe: MoEConfig, prefix: str, layout: ExpertLayout
) -> dict[str, tuple[int, ...]]:
    inner, shapes = moe.intermediate_size, _linear_tensors(f"{prefix}gate", moe.num_experts, hidden, False)
    if layout is ExpertLayout.FUSED:
        shapes[f"{prefix}{FUSED_GATE_UP}"] = (moe.num_experts, 2 * inner, hidden)
        shapes[f"{prefix}{FUSED_DOWN}"] = (moe.num_experts, hidden, inner)
        return shapes
    gate, up, down = family.expert_parts
    for expert in range(moe.num_experts):
        for name, rows, columns in ((gate, inner, hidden), (up, inner, hidden), (down, hidden, inner)):
            shapes |= _linear_tensors(f"{prefix}experts.{expert}.{name}", rows, columns, False)
    return shapes


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Compare names, shapes and types with what the config asks for. Raises ConfigError naming all that differ."""
    expected = expected_tensors(config, expert_layout(checkpoint))
    found = [_difference(checkpoint, name, shape) for name, shape in expected.items()]
    problems = [problem for problem in found if problem]
    problems += [
        f"{entry.shard}: tensor {name} is unknown to a {config.family} model; computing without it would be wrong"
        for name, entry in checkpoint.tensors.items()
        if name not in expected and not _ignorable(name, config)
    ]
    if problems:
        raise ConfigError(problems)


def _difference(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> str:
    entry = checkpoint.tensors.get(name)
    if entry is None and (shard := checkpoint.promised.get(name)) is not None:
        return f"{checkpoint.folder / INDEX}: tensor {name} is not in {shard.name}; fetch both again"
    if entry is None:
        return f"{checkpoint.folder}: tensor {name} {shape} is missing; config.json and weights do not fit"
    if entry.shape != shape:
        return f"{entry.shard}: tensor {name} has shape {entry.shape} and config.json asks for {shape}"
    if entry.dtype not in DTYPES:
        return f"{entry.shard}: tensor {name} has type {entry.dtype}; supported are {', '.join(DTYPES)}"
    size, needed = entry.end - entry.start, math.prod(shape) * DTYPES[entry.dtype]
    return f"{entry.shard}: tensor {name} has {size} bytes and its shape needs {needed}" if size != needed else ""


def _ignorable(name: str, config: ModelConfig) -> bool:
    """Tensors that some tools write and no model needs: stored frequencies, and the second copy of tied embeddings."""
    return name.endswith("rotary_emb.inv_freq") or (config.tied_embeddings and name == HEAD)


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Names the weights without reading them all: config, tensor names, shapes and types, and samples of each shard.

    Reads at most 256 KiB a shard. It tells different checkpoints apart; it does not prove that no byte was changed.
    """
    digest = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    for entry in checkpoint.tensors.values():
        digest.update(repr((entry.name, entry.dtype, entry.shape)).encode())
    for shard in checkpoint.shards:
        digest.update(_samples(shard))
    return digest.hexdigest()


def _samples(shard: Path) -> bytes:
    size = shard.stat().st_size
    stride = max(_SAMPLE_BYTES, size // _NUM_SAMPLES)
    with shard.open("rb") as file:
        samples = []
        for offset in range(0, size, stride):
            file.seek(offset)
            samples.append(file.read(_SAMPLE_BYTES))
    return size.to_bytes(8, "little") + b"".join(samples)
