"""The digest of a block: 128 bits of xxh3 over all its bytes. It guards against faults, not against people."""

import numpy as np
import numpy.typing as npt
import xxhash

DIGEST_BYTES = 16

PIECE_BYTES = 256 << 10
"""What is copied, then hashed while it is still in a core's cache; from 128 KiB to 1 MiB the times were alike."""


def block_digest(block: npt.NDArray[np.uint8] | memoryview | bytes) -> bytes:
    """The digest of a block's bytes."""
    return xxhash.xxh3_128_digest(block.data if isinstance(block, np.ndarray) else block)
