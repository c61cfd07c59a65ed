"""Compiles, without a GPU, what `TritonOps` would launch on one; prints what became of it as JSON.

Run as `python -m tests.engine.triton_compile`, without TRITON_INTERPRET. The operators run on tensors of a CPU with
each kernel replaced by one that notes its arguments; from these come the same signature, constants and alignments that
a launch would compile for.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from core.kv import KVLayout, SlabShape
from engine import triton_ops
from engine.lines import Chunk, Lines
from engine.memory import TORCH_DTYPES, KVMemory

L40S = triton_ops.Device(num_sms=142, shared_bytes=101_376)
TARGETS = {"H200": (GPUTarget("cuda", 90, 32), triton_ops.H200), "L40S": (GPUTarget("cuda", 89, 32), L40S)}
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
MODELS = {
    "8B": (32, 8, 128, "bfloat16", True),
    "8B in float32": (32, 8, 128, "float32", False),
    "1B in float16": (32, 8, 64, "float16", False),
    "heads of 256": (8, 4, 256, "bfloat16", False),
    "seven heads of 80 on one": (28, 4, 80, "bfloat16", False),
}
"""Query heads, KV heads, head size, type, and whether queries and keys are normalised."""
CUBIN_USAGE = r"(REG|STACK):(\d+)"
WIDE_ASYNC_COPY = r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], 0x10"
NARROW_ACCESS = r"(?:ld|st)\.global[^;]*\.b16 "


@dataclass(frozen=True, slots=True)
class Compiled:
    """What ptxas made of a kernel. `stack` are bytes a thread that did not fit registers; `async_copies` move 16 bytes
    a thread to shared memory, `narrow_accesses` two between global memory and registers.
    """

    model: str
    kernel: str
    options: str
    registers: int
    stack: int
    shared: int
    async_copies: int
    tensor_core: str
    narrow_accesses: int


class Noted:
    """Stands in for a kernel: notes launches instead of making them."""

    def __init__(self, function: Any, launches: list[tuple[Any, tuple[Any, ...], dict[str, int]]]) -> None:
        self._function = function
        self._launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: int) -> None:
            assert all(grid) and len(grid) <= 3
            self._launches.append((self._function, args, options))

        return launch


def launches(name: str, device: triton_ops.Device) -> list[tuple[Any, tuple[Any, ...], dict[str, int]]]:
    """What a layer's operators launch for a model's shape: many lines, few lines, with and without a window."""
    heads, kv_heads, dim, dtype, is_normed = MODELS[name]
    noted: list[tuple[Any, tuple[Any, ...], dict[str, int]]] = []
    for kernel in [each for each in vars(triton_ops) if each.endswith("_kernel")]:
        function = getattr(triton_ops, kernel)
        setattr(triton_ops, kernel, Noted(getattr(function, "_function", function), noted))
    shape = SlabShape(KVLayout(2, kv_heads, dim, 16, dtype), 2)
    memory = KVMemory(torch.zeros(shape.total_bytes, dtype=torch.uint8), shape)
    ops, kind, hidden = triton_ops.TritonOps(memory, device), TORCH_DTYPES[dtype], heads * dim
    place = torch.zeros(300, dtype=torch.int64)
    lines = Lines(
        place, place, place, torch.zeros(64, 512, dtype=torch.int64), place, place, 2, (Chunk(2, 300, 0, 0),), 8192
    )
    x, angle = torch.zeros(300, hidden, dtype=kind), torch.zeros(300, 1, dim, dtype=kind)
    ops.rms_norm(x, x[0], 1e-5)
    ops.add_rms_norm(x, x, x[0], 1e-5)
    ops.gated(x, "silu")
    ops.gated(x, "gelu_tanh")
    qk_norm = torch.zeros(heads + kv_heads, dim, dtype=kind) if is_normed else None
    queries = ops.store(
        1, torch.zeros(300, (heads + 2 * kv_heads) * dim, dtype=kind), lines, (angle, angle), qk_norm, 1e-5
    )
    ops.decode(1, queries[:2], lines, 0, 0.1)
    ops.decode(1, queries, lines, 0, 0.1)
    ops.prefill(1, queries, lines, 0, 0.1, queries)
    ops.prefill(1, queries, lines, 500, 0.1, queries)
    return noted


def source(function: Any, args: tuple[Any, ...]) -> ASTSource:
    """The kernel for these arguments, specialised as a launch with them would be."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], object] = {}
    aligned: dict[tuple[int, ...], list[list[object]]] = {}
    for number, (param, arg) in enumerate(zip(function.params, args, strict=True)):
        kind = "i32" if isinstance(arg, int) else "fp32"
        if param.is_constexpr:
            constants[number,], kind = arg, "constexpr"
        elif isinstance(arg, Tensor):
            kind = POINTERS[arg.dtype]
            assert arg.data_ptr() % 16 == 0
            aligned[number,] = [["tt.divisibility", 16]]
        elif isinstance(arg, int) and not param.do_not_specialize and arg % 16 == 0:
            aligned[number,] = [["tt.divisibility", 16]]
        signature[param.name] = kind
    return ASTSource(function, signature, constants, aligned)


def compiled(name: str, target: GPUTarget, device: triton_ops.Device, folder: Path) -> Iterator[Compiled]:
    """Compile all that is launched for a model."""
    for function, args, options in launches(name, device):
        made = triton.compile(source(function, args), target=target, options=options)
        ptx, cubin = made.asm["ptx"], folder / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        usage = dict(re.findall(CUBIN_USAGE, _usage(cubin)))
        cores = [each for each in ("wgmma", "mma.sync") if f"{each}" in ptx]
        constants = {p.name: a for p, a in zip(function.params, args, strict=True) if p.is_constexpr}
        yield Compiled(
            name,
            function.__name__,
            ", ".join(f"{key} {value}" for key, value in {**constants, **options}.items()),
            int(usage["REG"]),
            int(usage["STACK"]),
            made.metadata.shared,
            len(re.findall(WIDE_ASYNC_COPY, ptx)),
            " ".join(cores),
            len(re.findall(NARROW_ACCESS, ptx)),
        )


def _usage(cubin: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
    return told.stdout


def main() -> None:
    """Compile for a device and the models named after it on the command line, or all of them."""
    target, device = TARGETS[sys.argv[1]]
    with tempfile.TemporaryDirectory() as folder:
        found = [each for name in sys.argv[2:] or MODELS for each in compiled(name, target, device, Path(folder))]
    print(json.dumps([asdict(each) for each in found]))


if __name__ == "__main__":
    main()
