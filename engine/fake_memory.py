"""KV memory of a pretended node: plain bytes, 8 for a token."""

from collections.abc import Iterable
from hashlib import blake2b

SLOT_BYTES = 8
DIGEST_BYTES = 16


class FakeMemory:
    """KV memory of a pretended node: a generation for each block, and `block_size` slots of 8 bytes in it.

    Owns: the bytes.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.generations = [0] * num_blocks
        self.block_bytes = block_size * SLOT_BYTES
        self.bytes = bytearray(blake2b(b"never written").digest() * (num_blocks * self.block_bytes // 64 + 1))
        self.slots = memoryview(self.bytes).cast("Q")

    def digest(self, block: int) -> bytes:
        """16 bytes over the whole block, whatever of it was ever written."""
        return blake2b(self.read(block, 0, self.block_bytes), digest_size=DIGEST_BYTES).digest()

    def read(self, block: int, start: int, end: int) -> bytearray:
        """A copy of some of a block's bytes."""
        offset = block * self.block_bytes
        return self.bytes[offset + start : offset + end]

    def write(self, block: int, start: int, data: bytes | bytearray) -> None:
        """Put bytes into a block."""
        offset = block * self.block_bytes + start
        self.bytes[offset : offset + len(data)] = data

    def gather(self, table: Iterable[int], num_tokens: int) -> bytes:
        """The slots of the first `num_tokens` tokens of a block table, as memory has them now."""
        size, data = self.block_bytes, self.bytes
        return b"".join([data[block * size : block * size + size] for block in table])[: num_tokens * SLOT_BYTES]
