"""What the machine itself can do in the same run: matrix products, reading memory, copying it."""

import argparse
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from cluster.bench.arm_server import serve, take_output
from engine.linear import Linear

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    """Measures one bar a question until its input ends."""
    output, args = take_output(), _arguments()
    torch.set_num_threads(args.threads)
    bars = Bars(torch.device(args.device), _DTYPES[args.dtype], args.buffer_mib << 20, args.threads)
    serve(output, {"torch": torch.__version__}, {"gemm": bars.gemm, "read": bars.read, "copy": bars.copy})


class Bars:
    """Owns: the buffers, much larger than any cache, every page of them written once."""

    def __init__(self, device: torch.device, dtype: torch.dtype, num_bytes: int, num_threads: int) -> None:
        self._device = device
        self._dtype = dtype
        self._source = torch.ones(num_bytes // 4, device=device)
        self._target = torch.zeros(num_bytes // 4, device=device)
        self._readers = self._make_readers(num_threads)

    def _make_readers(self, num_threads: int) -> Mapping[str, Callable[[], object]]:
        """Several ways to read a buffer once; which is fastest depends on the machine and on torch."""
        flat, width = self._source, 4096
        matrix = flat[: len(flat) // width * width].view(-1, width)
        vector = torch.ones(width, device=self._device)
        out = torch.empty(len(matrix), device=self._device)
        integers = flat.view(torch.int32)
        linear, line = Linear(matrix, None, num_threads), vector[None]
        return {
            "our one-line product": lambda: linear(line),
            "sum": flat.sum,
            "max": flat.max,
            "dot": lambda: torch.dot(flat, flat),
            "mv": lambda: torch.mv(matrix, vector, out=out),
            "integer max": integers.max,
        }

    def gemm(self, shapes: list[list[int]]) -> dict[str, object]:
        """FLOP/s of each product `[m, k] x [n, k]ᵀ`, twice done, the better one."""
        return {"flops": [self._gemm(*shape) for shape in shapes]}

    def read(self) -> dict[str, object]:
        """Bytes read a second, by reader."""
        return {"bytes_per_s": {name: self._rate(reader, 1) for name, reader in self._readers.items()}}

    def copy(self) -> dict[str, object]:
        """Bytes copied a second, each counted once; on a device, those read and those written."""
        factor = 2 if self._device.type == "cuda" else 1
        return {"bytes_per_s": self._rate(lambda: self._target.copy_(self._source), factor)}

    def _gemm(self, m: int, n: int, k: int) -> float:
        left, right = (torch.randn(rows, k, device=self._device, dtype=self._dtype) for rows in (m, n))
        self._seconds(lambda: functional.linear(left, right))
        return 2.0 * m * n * k / min(self._seconds(lambda: functional.linear(left, right)) for _ in range(2))

    def _rate(self, read: Callable[[], object], factor: int) -> float:
        return factor * self._source.nbytes / min(self._seconds(read) for _ in range(2))

    def _seconds(self, work: Callable[[], Tensor | object]) -> float:
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--buffer-mib", type=int, default=512)
    return parser.parse_args()


if __name__ == "__main__":
    main()
