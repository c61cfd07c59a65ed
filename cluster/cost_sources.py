"""Where a simulated node's step times come from: a file, recognised by its content, or a GPU and a model's shape."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.simulated.hardware import GPUS, SHAPES, ModelShape, gpu_named, pool_blocks, shape_named
from cluster.simulated.truth import StepTruth
from cluster.simulated.truth_distserve import DistServeTruth, read_distserve
from cluster.simulated.truth_hosted import HostedTruth
from cluster.simulated.truth_roofline import Efficiency, RooflineTruth
from cluster.simulated.truth_splitwise import TokenCurve, read_splitwise
from cluster.simulated.truth_table import TableTruth
from core.errors import ConfigError
from core.kv import KVLayout
from engine.cost_table import KIND, CostTable

DEFAULT_GPU, DEFAULT_SHAPE = "H100", "llama-3-8b"

DISTSERVE_POOLS = {
    ("opt-13b", 1, 1): 66_144,
    ("opt-13b", 2, 1): 163_008,
    ("opt-13b", 4, 1): 356_736,
    ("opt-66b", 2, 1): 11_600,
    ("opt-66b", 3, 1): 45_056,
    ("opt-66b", 4, 1): 78_496,
    ("opt-66b", 2, 2): 78_512,
    ("opt-66b", 8, 1): 212_304,
}
"""Tokens of KV by model, tensor and pipeline parallel size on A100-80G. Source: LLMServe/DistServe, `simdistserve`."""

_SPLITWISE = {"a100-80gb": "A100", "h100-80gb": "H100", "h100-80gb-pcap": "H100"}
_SPLITWISE_SHAPES = {"llama2-70b": "llama-2-70b", "bloom-176b": "bloom-176b"}


@dataclass(frozen=True, slots=True)
class CostAsked:
    """What was asked on the command line; None or empty: whatever the source has.

    `beside`: a table measured while a neighbour on the same machine was as busy. What a shell adds to every step
    (`step_overhead_s`) and for each row or chunk in it (`row_overhead_s`) is for tables; a roofline has its own.
    """

    table: Path | None = None
    beside: Path | None = None
    step_overhead_s: float = 0.0
    row_overhead_s: float = 0.0
    gpu: str | None = None
    shape: str | None = None
    model: str = ""
    hardware: str = ""
    token_curve: str = "measured"
    efficiency: Efficiency = field(default_factory=Efficiency)
    bytes_per_weight: float = 2.0
    kv_dtype: str = "bfloat16"
    kv_tokens: int | None = None
    block_size: int = 64
    memory_share: float = 0.92


@dataclass(frozen=True, slots=True)
class NodeKind:
    """One kind of node: its steps, its pool, and what it consists of. `beside` are its steps while another node runs
    one, where that is known. `notes` say what was assumed."""

    words: str
    truth: StepTruth
    kv: KVLayout
    num_blocks: int
    num_gpus: int
    notes: tuple[str, ...] = ()
    beside: StepTruth | None = None


def node_kind(asked: CostAsked, tp: int | None, pp: int = 1) -> NodeKind:
    """A node of `tp` × `pp` GPUs by the source that was asked for; `tp` None: its smallest. Raises ConfigError."""
    kind = _bare_kind(asked, tp, pp)
    if asked.beside is not None:
        kind = replace(kind, beside=TableTruth(CostTable.read(asked.beside)))
    if asked.table is None or not (asked.step_overhead_s or asked.row_overhead_s):
        return kind
    added = asked.step_overhead_s, asked.row_overhead_s
    beside = HostedTruth(kind.beside, *added) if kind.beside else None
    return replace(kind, truth=HostedTruth(kind.truth, *added), beside=beside)


def _bare_kind(asked: CostAsked, tp: int | None, pp: int) -> NodeKind:
    if asked.table is None:
        if pp != 1:
            raise ConfigError(["pipeline stages are known from DistServe's fits only: give their file as --cost-table"])
        return _roofline(asked, tp or 1)
    text = _text_of(asked.table)
    if not text.lstrip().startswith("{"):
        return _splitwise(asked, asked.table, text, tp)
    words = _json_of(asked.table, text)
    if words.get("kind") == KIND:
        return _measured(asked, asked.table)
    return _distserve(asked, asked.table, words, tp, pp)


def tensor_sizes(asked: CostAsked) -> tuple[int, ...]:
    """The tensor-parallel sizes that the source has for the model that was asked for; a roofline has any."""
    if asked.table is None:
        return (1, 2, 4, 8)
    text = _text_of(asked.table)
    if not text.lstrip().startswith("{"):
        rows = _rows_of(text)
        model, hardware = _named(rows, "model", asked.model), _named(rows, "hardware", asked.hardware)
        there = {row["tensor_parallel"] for row in rows if (row["model"], row["hardware"]) == (model, hardware)}
        return tuple(sorted(int(size) for size in there if size.isdigit()))
    words = _json_of(asked.table, text)
    if words.get("kind") == KIND:
        return (1,)
    sizes = words[_model_of(asked, words)]
    return tuple(sorted(int(size) for size in sizes if size.isdigit())) if isinstance(sizes, dict) else ()


def shape_of(text: str) -> ModelShape:
    """A model's shape: a known name, or a Hugging Face folder or `config.json`. Raises ConfigError."""
    path = Path(text).expanduser()
    if text in SHAPES or not path.exists():
        return shape_named(text)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text())
        width, num_layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or width // heads)
        attention = 2 * width * head_dim * (heads + kv_heads)
        number = num_layers * (attention + 3 * width * int(config["intermediate_size"]))
        vocab = int(config["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError([f"{path}: no model's shape can be read: {type(error).__name__}: {error}"]) from error
    return ModelShape(path.parent.name, float(number), num_layers, width, heads, kv_heads, head_dim, vocab)


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _roofline(asked: CostAsked, tp: int) -> NodeKind:
    gpu, shape = gpu_named(asked.gpu or DEFAULT_GPU), shape_of(asked.shape or DEFAULT_SHAPE)
    kv = shape.kv(asked.block_size, asked.kv_dtype)
    blocks = _asked_blocks(asked)
    if blocks is None:
        blocks = pool_blocks(gpu, shape, kv, tp, asked.bytes_per_weight, asked.memory_share)
    truth = RooflineTruth(gpu, shape, tp, asked.efficiency, asked.bytes_per_weight, asked.kv_dtype)
    efficiency = f"{asked.efficiency.mfu:.0%} of arithmetic, {asked.efficiency.mbu:.0%} of bandwidth"
    return NodeKind(f"{shape.name} on {tp} x {gpu.name}, roofline ({efficiency})", truth, kv, blocks, tp)


def _measured(asked: CostAsked, path: Path) -> NodeKind:
    table, notes = CostTable.read(path), list[str]()
    kv = _layout(asked, table.facts.model, notes)
    blocks = _pool(asked, kv, notes)
    words = f"{table.facts.model} as measured in {path.name} ({table.facts.dtype}, {table.facts.device})"
    return NodeKind(words, TableTruth(table), kv, blocks, 1, tuple(notes))


def _distserve(asked: CostAsked, path: Path, words: Mapping[str, object], tp: int | None, pp: int) -> NodeKind:
    model, notes = _model_of(asked, words), list[str]()
    size = tp or tensor_sizes(asked)[0]
    truth = DistServeTruth(read_distserve(path, model, size), pp)
    kv, name = _layout(asked, model, notes), model.rpartition("/")[2].lower()
    tokens = DISTSERVE_POOLS.get((name, size, pp))
    blocks = _asked_blocks(asked) or (tokens // asked.block_size if tokens else _pool(asked, kv, notes))
    stages = f" PP{pp}" if pp > 1 else ""
    return NodeKind(f"{model} TP{size}{stages}, fits of {path.name}", truth, kv, blocks, size * pp, tuple(notes))


def _splitwise(asked: CostAsked, path: Path, text: str, tp: int | None) -> NodeKind:
    rows, notes = _rows_of(text), list[str]()
    model, hardware = _named(rows, "model", asked.model), _named(rows, "hardware", asked.hardware)
    size = tp or tensor_sizes(asked)[-1]
    truth = read_splitwise(path, model, hardware, size, TokenCurve(asked.token_curve))
    kv, gpu = _layout(asked, _SPLITWISE_SHAPES.get(model, model), notes), _SPLITWISE.get(hardware)
    blocks = _asked_blocks(asked)
    if blocks is None and gpu and model in _SPLITWISE_SHAPES:
        shape = SHAPES[_SPLITWISE_SHAPES[model]]
        blocks = pool_blocks(GPUS[gpu], shape, kv, size, asked.bytes_per_weight, asked.memory_share)
    words = f"{model} on {size} x {hardware}, {path.name} ({asked.token_curve} token curve)"
    return NodeKind(words, truth, kv, blocks or _pool(asked, kv, notes), size, tuple(notes))


# ── what a source leaves open ────────────────────────────────────────────────────────────────────────────────────────


def _asked_blocks(asked: CostAsked) -> int | None:
    return None if asked.kv_tokens is None else max(1, asked.kv_tokens // asked.block_size)


def _layout(asked: CostAsked, model: str, notes: list[str]) -> KVLayout:
    """The KV of the shape that was asked for, or that the source's own model has where it is known."""
    name = model.rpartition("/")[2].lower()
    if asked.shape is None and name not in SHAPES:
        notes.append(f"the shape of {model} is not known: KV as {DEFAULT_SHAPE} has it (--model-shape)")
    shape = shape_of(asked.shape) if asked.shape else SHAPES.get(name, SHAPES[DEFAULT_SHAPE])
    return shape.kv(asked.block_size, asked.kv_dtype)


def _pool(asked: CostAsked, kv: KVLayout, notes: list[str]) -> int:
    """Blocks where the source does not tell them: as asked, else what 16 GB hold."""
    blocks = _asked_blocks(asked)
    if blocks is None:
        blocks = max(1, int(16e9 // kv.bytes_per_block))
        notes.append(f"the source tells no KV pool: 16 GB, {blocks * kv.block_size:,} tokens (--kv-tokens)")
    return blocks


def _model_of(asked: CostAsked, words: Mapping[str, object]) -> str:
    there = list(words)
    found = [name for name in there if asked.model.lower() in (name.lower(), name.rpartition("/")[2].lower())]
    if asked.model and not found:
        raise ConfigError([f"the cost table has no model {asked.model!r}; it has {', '.join(there)} (--cost-model)"])
    if not asked.model and len(there) != 1:
        raise ConfigError([f"the cost table has {', '.join(there) or 'no model'}: name one with --cost-model"])
    return found[0] if asked.model else there[0]


def _named(rows: list[dict[str, str]], column: str, asked: str) -> str:
    there = sorted({row[column] for row in rows})
    flag = "--cost-model" if column == "model" else "--cost-hardware"
    if asked and asked not in there:
        raise ConfigError([f"the cost table has no {column} {asked!r}; it has {', '.join(there)} ({flag})"])
    if not asked and len(there) != 1:
        raise ConfigError([f"the cost table has several of {column}, {', '.join(there)}: name one with {flag}"])
    return asked or there[0]


def _rows_of(text: str) -> list[dict[str, str]]:
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in ("model", "hardware", "tensor_parallel") if name not in (reader.fieldnames or ())]
    if missing:
        kinds = "a table of `penstock profile`, fits as DistServe has them (JSON), or Splitwise's CSV"
        raise ConfigError([f"the cost table is none that is known ({kinds}): no column {', '.join(missing)}"])
    return [row for row in reader if all(row.get(name) for name in ("model", "hardware", "tensor_parallel"))]


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--cost-table {path} cannot be read: {error}"]) from error


def _json_of(path: Path, text: str) -> dict[str, object]:
    try:
        words = json.loads(text)
    except ValueError as error:
        raise ConfigError([f"--cost-table {path} is not JSON: {error}"]) from error
    return words if isinstance(words, dict) else {}
