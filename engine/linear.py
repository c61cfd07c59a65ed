"""Products with weight matrices: few lines through a C kernel that reads the weights once, many through torch."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.native.library import load

_MAX_NATIVE_LINES = 64
_MAX_NATIVE_LINES_INT8 = 96
"""Up to here the C kernel is faster. Measured on one core with AVX2 (C / torch, ms): 4096 x 1024 floats 1.1 / 3.0 at 4
lines, 4.4 / 6.2 at 32, 9.3 / 10.8 at 64, 13.7 / 13.4 at 96; int8 against panels 12.1 / 13.1 at 96, 18.4 / 15.2 at 128.
"""
_PANEL_ROWS = 256
"""Rows of an int8 weight that are unpacked at a time for torch."""


class Linear:
    """A matrix that activations are multiplied by, in the type and on the device that it has.

    On a CPU in float32, up to `_MAX_NATIVE_LINES` lines go through the C kernel, over the same weight. Within it a
    line's result does not depend on the other lines or on the number of threads; torch's differs by rounding.
    Shapes: `weight` [out, in], `bias` [out] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, num_threads: int = 1) -> None:
        self.weight = weight.contiguous()
        self.bias = None if bias is None else bias.contiguous()
        self.out_features, self.in_features = weight.shape
        self._num_threads = num_threads
        fits = weight.device.type == "cpu" and weight.dtype is torch.float32
        self._native = load() if fits else None
        self._max_native_lines = 0 if self._native is None else _MAX_NATIVE_LINES
        self._addresses = self.weight.data_ptr(), None if self.bias is None else self.bias.data_ptr()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: [N, in] -> [N, out]."""
        num_lines = len(x)
        if self._native is None or num_lines > self._max_native_lines:
            return functional.linear(x, self.weight, self.bias)
        x = x.contiguous()
        out = x.new_empty((num_lines, self.out_features))
        self._native.linear(
            x.data_ptr(),
            *self._addresses,
            out.data_ptr(),
            num_lines,
            self.in_features,
            self.out_features,
            self._num_threads,
        )
        return out


def round_rows(weight: Tensor, into: tuple[Tensor, Tensor], scratch: Tensor) -> None:
    """Round each row of floats to 127 steps each way of its largest magnitude, without memory of its own.

    Shapes: `weight` and `scratch` float32 [out, in]; `into` int8 [out, in] and float32 [out].
    """
    steps, scales = into
    torch.amax(torch.abs(weight, out=scratch), dim=1, out=scales)
    scales.div_(127)
    torch.div(weight, scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], out=scratch)
    steps.copy_(scratch.round_())


class Int8Linear:
    """A matrix of 8-bit integers with one float32 scale per output row; activations stay float32. CPU only.

    Owns: for many lines, a scratch for some rows of the weight as floats. Results are those of `Linear` over
    `dequantized()`, but for rounding.
    Shapes: `weight` int8 [out, in], `scales` [out], `bias` [out] or None.
    """

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None = None, num_threads: int = 1) -> None:
        self.weight = weight.contiguous()
        self.scales = scales.contiguous()
        self.bias = None if bias is None else bias.contiguous()
        self.out_features, self.in_features = weight.shape
        self._num_threads = num_threads
        self._native = load() if weight.device.type == "cpu" else None
        bias_address = None if self.bias is None else self.bias.data_ptr()
        self._addresses = self.weight.data_ptr(), self.scales.data_ptr(), bias_address
        self._panel = torch.empty(0)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None = None, num_threads: int = 1) -> "Int8Linear":
        """Round each row to 127 steps each way of its largest magnitude. Shapes: [out, in], [out] or None."""
        weight = weight.float()
        steps, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
        round_rows(weight, (steps, scales), torch.empty_like(weight))
        return cls(steps, scales, None if bias is None else bias.float(), num_threads)

    @property
    def nbytes(self) -> int:
        """Bytes held, without the scratch."""
        return self.weight.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def dequantized(self) -> Tensor:
        """The weight as floats. Shapes: [out, in]."""
        return self.weight.float().mul_(self.scales[:, None])

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: [N, in] -> [N, out]."""
        num_lines = len(x)
        out = x.new_empty((num_lines, self.out_features))
        if self._native is None or num_lines > _MAX_NATIVE_LINES_INT8:
            return self._by_panels(x, out)
        x = x.contiguous()
        self._native.linear_int8(
            x.data_ptr(),
            *self._addresses,
            out.data_ptr(),
            num_lines,
            self.in_features,
            self.out_features,
            self._num_threads,
        )
        return out

    def _by_panels(self, x: Tensor, out: Tensor) -> Tensor:
        for start in range(0, self.out_features, _PANEL_ROWS):
            end = min(start + _PANEL_ROWS, self.out_features)
            torch.mm(x, self._unpack(start, end).T, out=out[:, start:end])
        return out if self.bias is None else out.add_(self.bias)

    def _unpack(self, start: int, end: int) -> Tensor:
        if not len(self._panel):
            self._panel = torch.empty(min(_PANEL_ROWS, self.out_features), self.in_features)
        panel = self._panel[: end - start]
        if self._native is None:
            return torch.mul(self.weight[start:end], self.scales[start:end, None], out=panel)
        weight, scales = self.weight[start:end], self.scales[start:end]
        self._native.unpack_int8(
            weight.data_ptr(), scales.data_ptr(), panel.data_ptr(), end - start, self.in_features, self._num_threads
        )
        return panel
