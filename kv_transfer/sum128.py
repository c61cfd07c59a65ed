"""A digest of a block that a device can compute: 128 bits of sums of mixed words. Against faults, not against people.

Read the block as little-endian u64 words w[i]. Each is mixed with its place by a bijection (SplitMix64's); the two
halves of the digest are the sums of the mixed words and of a further bijection of them, modulo 2^64:

    m[i] = mix(w[i] + (i + 1) * PLACE)        low = sum of m[i]        high = sum of spread(m[i])

Sums may be taken in any order, so thousands of threads give the same bits each time. One changed word always changes
both halves; several change neither with a chance of about 2^-128; a word that moved is mixed with another place.
"""

import numpy as np
import numpy.typing as npt

PLACE = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
THIRD = 0xD6E8FEB86659FD93
"""Odd constants; the first three are those of SplitMix64."""

Sums = npt.NDArray[np.uint64]


def sum128(blocks: npt.NDArray[np.uint8]) -> Sums:
    """The reference, on the host. Shapes: [blocks, bytes], bytes a multiple of 16 -> [blocks, 2], low half first."""
    words: Sums = np.ascontiguousarray(blocks).view("<u8").astype(np.uint64, copy=False)
    places: Sums = np.arange(1, words.shape[1] + 1, dtype=np.uint64)
    mixed = words + places * np.uint64(PLACE)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(SECOND)
    mixed ^= mixed >> np.uint64(31)
    spread = mixed * np.uint64(THIRD)
    spread ^= spread >> np.uint64(32)
    return np.stack((mixed.sum(axis=1, dtype=np.uint64), spread.sum(axis=1, dtype=np.uint64)), axis=1)


def as_digests(sums: Sums) -> tuple[bytes, ...]:
    """As they stand in a handle: 16 bytes each. Shapes: [blocks, 2]."""
    data = np.ascontiguousarray(sums).astype("<u8", copy=False).tobytes()
    return tuple(data[start : start + 16] for start in range(0, len(data), 16))
