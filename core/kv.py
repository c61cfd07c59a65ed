"""KV memory in words: its layout, the handle of a handoff, and content keys. No tensors and no addresses."""

import hashlib
from dataclasses import dataclass

from core.ids import AttemptId, LayoutId, NodeId

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Where each byte of a block lies: axes `[kv_head][layer][k/v][token][head_dim]`, one contiguous range a block.

    Heads come first so that the slice of a tensor-parallel rank is one range.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    tp_rank: int = 0
    tp_size: int = 1

    @property
    def bytes_per_token(self) -> int:
        """KV bytes of one token over all layers, keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block."""
        return self.bytes_per_token * self.block_size

    def id(self, model_digest: str) -> LayoutId:
        """Names weights and geometry, in that order. Equal ids: KV may be exchanged byte for byte."""
        geometry = hashlib.sha256(repr((self, "kv1")).encode()).hexdigest()[:16]
        return LayoutId(f"{hashlib.sha256(model_digest.encode()).hexdigest()[:16]}.{geometry}")


def weights_of(layout: LayoutId) -> str:
    """The part of a layout's id that names the weights: KV of other weights means something else, in any geometry."""
    return layout.partition(".")[0]


@dataclass(frozen=True, slots=True)
class SlabShape:
    """Where things lie in a node's KV slab: a header of one u64 generation per block, then the blocks, page-aligned.

    The header belongs to the bytes: whoever is about to write a block writes its generation first, and a reader
    compares
    it before and after its copy.
    """

    layout: KVLayout
    num_blocks: int

    @property
    def blocks_offset(self) -> int:
        """Byte offset of block 0."""
        return -(-self.num_blocks * 8 // 4096) * 4096

    @property
    def total_bytes(self) -> int:
        """Size of the slab."""
        return self.blocks_offset + self.num_blocks * self.layout.bytes_per_block

    def block_offset(self, block: int) -> int:
        """Byte offset of a block."""
        return self.blocks_offset + block * self.layout.bytes_per_block


@dataclass(frozen=True, slots=True)
class KVHandle:
    """A run of sealed blocks that `owner` lends: names, generations and digests, no address.

    Columns of equal length. `first_block` is the index, in the attempt's table, of `block_ids[0]`.
    `digests` are 16 bytes each, over the whole block.
    """

    attempt: AttemptId
    owner: NodeId
    layout: LayoutId
    first_block: int
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]
    digests: tuple[bytes, ...]

    @property
    def end_block(self) -> int:
        """One past the last table index that this handle covers."""
        return self.first_block + len(self.block_ids)

    def take(self, indices: tuple[int, ...]) -> "KVHandle":
        """The same handle for some of its columns only (`indices` count from 0 and rise); `first_block` is theirs."""
        return KVHandle(
            self.attempt,
            self.owner,
            self.layout,
            self.first_block + (indices[0] if indices else 0),
            tuple(self.block_ids[i] for i in indices),
            tuple(self.generations[i] for i in indices),
            tuple(self.digests[i] for i in indices),
        )


@dataclass(frozen=True, slots=True)
class FetchTarget:
    """The reader's own blocks that a fetch fills, aligned with the handle's columns."""

    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that `num_tokens` tokens need."""
    return -(-num_tokens // block_size)


def block_keys(token_ids: bytes, block_size: int, salt: str = "") -> tuple[bytes, ...]:
    """Content keys of the full blocks of a packed prompt: key i covers all tokens up to the end of block i.

    `salt` names the tenant: equal content under different salts never shares a block.
    """
    step = block_size * 4
    key = hashlib.sha256(salt.encode()).digest()[:16]
    keys = []
    for end in range(step, len(token_ids) + 1, step):
        key = hashlib.sha256(key + token_ids[end - step : end]).digest()[:16]
        keys.append(key)
    return tuple(keys)


def tail_key(token_ids: bytes, block_size: int, salt: str = "") -> bytes:
    """Content key of a whole packed prompt: that of its last block, full or not."""
    keys = block_keys(token_ids, block_size, salt)
    rest = token_ids[len(keys) * block_size * 4 :]
    if not rest and keys:
        return keys[-1]
    before = keys[-1] if keys else hashlib.sha256(salt.encode()).digest()[:16]
    return hashlib.sha256(before + rest).digest()[:16]
