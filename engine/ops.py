"""The operators between matrix products: through torch on every device and type, through C on a CPU in float32."""

import importlib.util
import logging
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine.lines import Lines
from engine.memory import KVMemory
from engine.native.library import Native, load
from engine.torch_attention import TorchAttention

LOG = logging.getLogger("penstock.engine")

Angles = tuple[Tensor, Tensor]
"""Cosines and signed sines from `Rotary.angles`. Shapes: two of [N, 1, head_dim]."""

ACTIVATIONS = ("silu", "gelu_tanh")


class Ops(Protocol):
    """What a decoder is computed with, but for its matrix products. All results are new tensors unless said otherwise.

    Shapes: N lines, h hidden size, H heads, K KV heads, D head size, i inner size.
    """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Divide by the root mean square of the last axis, then scale. Shapes: [N, h] and [h] -> [N, h]."""

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add `delta` to `hidden` in place; the sum normalised. Shapes: [N, h] twice and [h] -> [N, h]."""

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """The first half, activated, times the second half. Shapes: [N, 2i] -> [N, i]."""

    def store(
        self, layer: int, qkv: Tensor, lines: Lines, angles: Angles, qk_norm: Tensor | None, eps: float
    ) -> Tensor:
        """Normalise (with `qk_norm`) and turn queries and keys; put keys and values at the lines' places.

        Shapes: [N, (H + 2K) * D] and `qk_norm` [H + K, D] -> queries [N, H, D].
        """

    def decode(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float) -> Tensor:
        """Attend the first n lines one by one: each sees positions up to its own, the last `window` if not 0.

        Shapes: [n, H, D] -> [n, H, D].
        """

    def prefill(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float, out: Tensor) -> None:
        """Attend the chunks' lines, writing theirs of `out` and no others. Shapes: both [N, H, D]."""


class TorchOps:
    """The operators through torch.

    Owns: the attention's scratch.
    """

    def __init__(self, memory: KVMemory) -> None:
        self._memory = memory
        self._attention = TorchAttention(memory)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        return functional.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        return functional.rms_norm(hidden.add_(delta), weight.shape, weight, eps)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See `Ops`."""
        gate, up = gate_up.chunk(2, dim=-1)
        active = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
        return active.mul_(up)

    def store(
        self, layer: int, qkv: Tensor, lines: Lines, angles: Angles, qk_norm: Tensor | None, eps: float
    ) -> Tensor:
        """See `Ops`."""
        layout = self._memory.shape.layout
        by_head = qkv.view(len(qkv), -1, layout.head_dim)
        num_turned = by_head.shape[1] - layout.num_kv_heads
        num_heads = num_turned - layout.num_kv_heads
        turning = by_head[:, :num_turned]
        if qk_norm is not None:
            turning = functional.rms_norm(turning, turning.shape[-1:], None, eps).mul_(qk_norm)
        turned = (turning * angles[0]).addcmul_(turning.roll(layout.head_dim // 2, -1), angles[1])
        places = self._memory.token_rows(lines.block_ids, lines.offsets)
        self._memory.write(layer, places, turned[:, num_heads:], by_head[:, num_turned:])
        return turned[:, :num_heads]

    def decode(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float) -> Tensor:
        """See `Ops`."""
        return self._attention.decode(layer, queries, lines, window, scale)

    def prefill(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float, out: Tensor) -> None:
        """See `Ops`."""
        self._attention.prefill(layer, queries, lines, window, scale, out)


class NativeOps(TorchOps):
    """The operators through the C kernels: memory on a CPU, in float32. Chunks are attended through torch.

    A line's results are the same whatever lines are beside it, and whatever the number of threads.
    """

    def __init__(self, memory: KVMemory, native: Native, num_threads: int = 1) -> None:
        super().__init__(memory)
        self._native = native
        self._num_threads = num_threads
        self._place = native.place(memory)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        x = x.contiguous()
        out = torch.empty_like(x)
        num_lines, size = x.shape
        self._native.rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), num_lines, size, eps, self._num_threads)
        return out

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        assert hidden.is_contiguous(), "the sum is written in place"
        delta = delta.contiguous()
        out = torch.empty_like(hidden)
        num_lines, size = hidden.shape
        self._native.add_rms_norm(
            hidden.data_ptr(),
            delta.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            num_lines,
            size,
            eps,
            self._num_threads,
        )
        return out

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """See `Ops`."""
        gate_up = gate_up.contiguous()
        num_lines, size = gate_up.shape
        out = gate_up.new_empty((num_lines, size // 2))
        which = ACTIVATIONS.index(activation)
        self._native.gated(gate_up.data_ptr(), out.data_ptr(), num_lines, size // 2, which, self._num_threads)
        return out

    def store(
        self, layer: int, qkv: Tensor, lines: Lines, angles: Angles, qk_norm: Tensor | None, eps: float
    ) -> Tensor:
        """See `Ops`."""
        layout = self._memory.shape.layout
        num_lines, size = qkv.shape
        num_heads = size // layout.head_dim - 2 * layout.num_kv_heads
        qkv, cos, sin = qkv.contiguous(), angles[0].contiguous(), angles[1].contiguous()
        queries = qkv.new_empty((num_lines, num_heads, layout.head_dim))
        self._native.store(
            self._place.address,
            layer,
            qkv.data_ptr(),
            num_lines,
            num_heads,
            lines.block_ids.data_ptr(),
            lines.offsets.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            None if qk_norm is None else qk_norm.data_ptr(),
            eps,
            queries.data_ptr(),
            self._num_threads,
        )
        return queries

    def decode(self, layer: int, queries: Tensor, lines: Lines, window: int, scale: float) -> Tensor:
        """See `Ops`."""
        queries = queries.contiguous()
        out = torch.empty_like(queries)
        num_lines, num_heads, _ = queries.shape
        self._native.decode(
            self._place.address,
            layer,
            queries.data_ptr(),
            num_lines,
            num_heads,
            lines.rows.data_ptr(),
            lines.positions.data_ptr(),
            lines.tables.data_ptr(),
            lines.tables.stride(0),
            window,
            scale,
            out.data_ptr(),
            self._num_threads,
        )
        return out


def ops_for(memory: KVMemory, num_threads: int = 1) -> Ops:
    """The fastest operators for a memory: C kernels on a CPU in float32, Triton's on CUDA, where they can be had."""
    if memory.device.type == "cpu" and memory.dtype is torch.float32 and (native := load()) is not None:
        return NativeOps(memory, native, num_threads)
    if memory.device.type == "cuda" and memory.dtype is not torch.float64:
        if importlib.util.find_spec("triton") is None:
            LOG.warning("triton is not installed: attention goes through torch, slower and without CUDA graphs")
        else:
            from engine.triton_ops import TritonOps  # only here: it imports triton

            return TritonOps(memory)
    return TorchOps(memory)
