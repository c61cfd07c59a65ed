"""Paged KV memory: the tensors of a slab.

Block i is one contiguous range of bytes with axes `[kv_head][layer][k/v][token][head_dim]`.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from core.errors import ConfigError
from core.kv import SlabShape

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
"""Torch's types by the names that configs and layouts use."""

SlabBuffer = memoryview | bytearray | Tensor
"""The slab's bytes as the host made them: a writable buffer, or on CUDA a contiguous uint8 tensor."""

Digests = Callable[[tuple[int, ...]], tuple[bytes, ...]]
"""16 bytes over each of some blocks, of what they hold when all that the executor handed to the device is done."""


class Part(IntEnum):
    """The two halves of a layer's KV, in the order in which they lie."""

    KEYS = 0
    VALUES = 1


class KVMemory:
    """The KV blocks of one node, as tensors over bytes that somebody else allocated.

    Owns: nothing but views; the host owns the bytes and closes this before it unmaps them.
    Invariant: a block's generation is in the header before any byte of the block is written for its new owner.
    Shapes: `blocks` is [num_blocks, kv_heads, layers, 2, block_size, head_dim], without a copy.
    """

    def __init__(self, buffer: SlabBuffer, shape: SlabShape, digests: Digests | None = None) -> None:
        """`digests`: of blocks by their ids, for a pool that computes them where it lies."""
        if shape.layout.tp_size != 1:
            raise ConfigError([f"tp_size {shape.layout.tp_size} is not supported yet; use 1"])
        self.shape = shape
        self._pool_digests = digests
        layout, slab = shape.layout, _as_bytes(buffer, shape)
        self.generations = slab[: shape.num_blocks * 8].view(torch.int64)
        self._block_bytes = slab[shape.blocks_offset :].view(shape.num_blocks, layout.bytes_per_block)
        word = torch.uint8 if layout.bytes_per_block % 8 else torch.int64
        self._block_words = self._block_bytes.view(word)
        flat = slab[shape.blocks_offset :].view(TORCH_DTYPES[layout.dtype])
        sizes = (shape.num_blocks, layout.num_kv_heads, layout.num_layers, 2, layout.block_size, layout.head_dim)
        self.blocks = flat.view(sizes)
        self._pages = self._views(flat.view(-1, layout.block_size * layout.head_dim), 1)
        self._tokens = self._views(flat.view(-1, layout.head_dim), layout.block_size)
        self._heads = torch.arange(layout.num_kv_heads, device=slab.device)

    def _views(self, rows: Tensor, rows_per_page: int) -> list[tuple[Tensor, Tensor]]:
        """Per layer, the same memory starting at its keys and at its values: one index then serves all layers.

        A gather of whole rows of a matrix is a memcpy each; indexing the six axes costs five times as much on a CPU.
        """
        starts = [2 * layer * rows_per_page for layer in range(self.shape.layout.num_layers)]
        return [(rows[start:], rows[start + rows_per_page :]) for start in starts]

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.blocks.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of keys and values."""
        return self.blocks.dtype

    def start_blocks(self, block_ids: Sequence[int], generations: Sequence[int], num_filled: int = 0) -> None:
        """Write the blocks' generations, then clear all but the first `num_filled` of them.

        Clearing keeps what an earlier owner left (which may be NaN) out of padded reads, digests and handoffs.
        """
        if not block_ids:
            return
        ids = torch.tensor(block_ids, device=self.device)
        self.generations[ids] = torch.from_numpy(np.array(generations, np.uint64).view(np.int64)).to(self.device)
        if self.device.type == "cpu":
            for block in block_ids[num_filled:]:
                self._block_bytes[block].zero_()
        else:  # one launch, not one a block
            self._block_words.index_fill_(0, ids[num_filled:], 0)

    def copy_tokens(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` tokens of a block, all layers and heads."""
        self.blocks[target, :, :, :, :num_tokens] = self.blocks[source, :, :, :, :num_tokens]

    def read_blocks(self, block_ids: Tensor) -> Tensor:
        """A copy of whole blocks in host memory. Shapes: [blocks] -> uint8 [blocks, bytes_per_block]."""
        held = self._block_bytes[block_ids]
        if held.device.type == "cpu":
            return held
        pinned = torch.empty(held.shape, dtype=held.dtype, pin_memory=True)  # 1.6 GB/s without, on an H200's host
        return pinned.copy_(held)

    def write_blocks(self, block_ids: Tensor, data: Tensor) -> None:
        """Put what `read_blocks` gave into blocks of the same number."""
        self._block_bytes[block_ids] = data.to(self.device)

    def page_rows(self, tables: Tensor) -> Tensor:
        """Index for `gather`. Shapes: block ids [rows, blocks] -> [rows, kv_heads, blocks]."""
        return self._page_rows(tables[:, None, :], self._heads[:, None])

    def token_rows(self, block_ids: Tensor, offsets: Tensor) -> Tensor:
        """Index for `write`. Shapes: block ids and places in the block, both [tokens] -> [tokens * kv_heads]."""
        pages = self._page_rows(block_ids[:, None], self._heads)
        return (pages * self.shape.layout.block_size + offsets[:, None]).flatten()

    def _page_rows(self, blocks: Tensor, heads: Tensor) -> Tensor:
        layout = self.shape.layout
        return (blocks * layout.num_kv_heads + heads) * (layout.num_layers * 2)

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store a step's keys and values. Shapes: `rows` from `token_rows`; the others [tokens, kv_heads, head_dim]."""
        to_keys, to_values = self._tokens[layer]
        dim = self.shape.layout.head_dim
        to_keys.index_copy_(0, rows, keys.reshape(-1, dim))
        to_values.index_copy_(0, rows, values.reshape(-1, dim))

    def gather(self, layer: int, part: Part, pages: Tensor, out: Tensor) -> None:
        """Copy whole pages. Shapes: `pages` flat, from `page_rows`; `out` [pages, block_size * head_dim]."""
        torch.index_select(self._pages[layer][part], 0, pages, out=out)

    def digests(self, block_ids: Sequence[int]) -> tuple[bytes, ...]:
        """What blocks are sealed with, over their whole bytes: the pool's own digests where it has some.

        Otherwise xxh3_128; on a CPU without a copy. Guards against faults, not against people.
        """
        if self._pool_digests is not None:
            return self._pool_digests(tuple(block_ids))
        if not block_ids:
            return ()
        import xxhash  # only here: without it everything but sealing works, as GPU machines' own Pythons are

        return tuple(xxhash.xxh3_128_digest(self._block_bytes[block].cpu().numpy().data) for block in block_ids)

    def close(self) -> None:
        """Let go of the bytes; nothing else may be called afterwards. Twice is fine."""
        empty = torch.empty(0, dtype=torch.uint8)
        self._block_bytes = self._block_words = self.blocks = self.generations = empty
        self._pages, self._tokens = [], []


def _as_bytes(buffer: SlabBuffer, shape: SlabShape) -> Tensor:
    """The buffer as a flat uint8 tensor. Through numpy, so that an mmap with living tensors refuses to be closed."""
    if isinstance(buffer, Tensor):
        data = buffer.view(-1)
    else:
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise ConfigError(["the KV slab is not writable; map it for reading and writing"])
        data = torch.from_numpy(np.frombuffer(view, dtype=np.uint8))
    if data.dtype is not torch.uint8 or data.numel() < shape.total_bytes:
        found = f"{data.nbytes} bytes of {data.dtype}"
        raise ConfigError([f"the KV slab has {found}; {shape.num_blocks} blocks need {shape.total_bytes} of uint8"])
    return data[: shape.total_bytes]
