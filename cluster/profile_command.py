"""`penstock profile`: measures a model on this machine and writes its cost table."""

import argparse
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.progress import Progress

from cluster.console import ERR, OUT
from cluster.gpu_probe import found_gpus
from cluster.live.gpus import Gpu
from cluster.memory import available_memory_bytes
from cluster.report_file import machine
from core.errors import ConfigError
from core.kv import DTYPE_BYTES, num_blocks
from engine.cost_table import CostTable, TableFacts
from engine.model_info import LoadFormat, ModelInfo, read_model_info
from engine.profile import Grid, measure

POOL_SHARE = 0.5
"""Of the free memory, at most, for the pool that is measured with."""

QUICK = Grid((1, 16, 64), (64,), (1, 4), (32, 128), (4,), 2)


def run_profile(args: argparse.Namespace) -> int:
    """Measures and writes; 0."""
    problems = [
        f"--{name.replace('_', '-')} must be at least 1, not {value}"
        for name in ("block_size", "num_threads", "repeats")
        if (value := getattr(args, name)) is not None and value < 1
    ]
    if problems:
        raise ConfigError(problems)
    own = Grid() if args.device == "cpu" else Grid.of_gpu()
    grid = QUICK if args.quick else own
    if args.repeats is not None:
        grid = replace(grid, repeats=args.repeats)
    folder = Path(args.model).expanduser().resolve()
    info = read_model_info(folder, LoadFormat(args.load_format))
    table, num_left_out = _measure(args, folder, info, grid)
    try:
        table.write(Path(args.output))
    except OSError as error:
        raise ConfigError([f"the cost table cannot be written: {error}"]) from error
    _tell(table, num_left_out, args.output)
    return 0


def _measure(args: argparse.Namespace, folder: Path, info: ModelInfo, grid: Grid) -> tuple[CostTable, int]:
    from cluster.bench.bare_engine import BareEngine, EngineChoice

    choice = EngineChoice(
        folder,
        args.dtype,
        args.device,
        args.num_threads,
        args.quantization,
        args.block_size,
        LoadFormat(args.load_format),
    )
    gpu = None if args.device == "cpu" else found_gpus()[0]
    blocks = _num_blocks(info, grid, args, gpu)
    with BareEngine(choice, blocks) as engine, Progress(console=ERR, disable=not ERR.is_terminal) as progress:
        engine.executor.warm_up()
        task = progress.add_task("measuring", total=1.0)
        found = measure(engine.probe(), grid, lambda share: progress.update(task, completed=share))
    facts = TableFacts(
        model=folder.name,
        digest=info.digest,
        dtype=args.dtype,
        device=args.device,
        quantization=args.quantization,
        num_threads=args.num_threads,
        block_size=args.block_size,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine() | ({} if gpu is None else {"gpu": gpu.name}) | {"load_average": os.getloadavg()[0]},
    )
    return CostTable.of(facts, found.steps, found.copies, found.checks), found.num_left_out


def _num_blocks(info: ModelInfo, grid: Grid, args: argparse.Namespace, gpu: Gpu | None) -> int:
    """What the largest step of the grid needs, as far as half of the free memory goes."""
    size = args.block_size
    longest = min(info.max_model_len, max(grid.contexts) + grid.repeats + 2)
    prompt = min(info.max_model_len, max(grid.prefill_tokens) + max(grid.prefixes) + 1)
    most = max(grid.rows) * num_blocks(longest, size) + num_blocks(prompt, size)
    affordable = int(_free_bytes(args, info, gpu) * POOL_SHARE) // info.kv_layout(size, args.dtype).bytes_per_block
    return max(1, min(most, affordable))


def _free_bytes(args: argparse.Namespace, info: ModelInfo, gpu: Gpu | None) -> int:
    """Where the pool will lie; on a GPU, what the weights leave."""
    if gpu is None:
        return available_memory_bytes()
    weights = info.weights_bytes * DTYPE_BYTES[args.dtype] // DTYPE_BYTES[info.dtype]
    return max(0, gpu.free_bytes - weights)


def _tell(table: CostTable, num_left_out: int, output: str) -> None:
    recompute, error = table.recompute(), table.error()
    OUT.print(f"{len(table.steps)} kinds of steps and {len(table.copies)} of copies of {table.facts.model}: {output}")
    if num_left_out:
        OUT.print(f"{num_left_out} more did not fit the model's context or the memory; they are extrapolated.")
    OUT.print(
        f"A prompt: {recompute.fixed_s * 1e3:.2f} ms, {recompute.prefill_s_per_token * 1e6:.1f} µs a token, "
        f"{recompute.prefill_s_per_token_context * 1e9:.2f} ns a token and token before it; a KV block to host memory "
        f"or back: {recompute.copy_s_per_block * 1e6:.0f} µs."
    )
    if error is not None:
        OUT.print(
            f"Off by {error.median:.1%} in the median and {error.worst:.1%} at worst on {len(table.checks)} steps that "
            "it was not made from."
        )
