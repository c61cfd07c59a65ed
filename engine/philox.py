"""Random numbers that depend on what they are for, and on nothing that happened before."""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = np.arange(10, dtype=np.uint64)[:, None, None]


class Purpose(IntEnum):
    """What a random number is for; numbers of different purposes are independent."""

    TOKEN = 0


def philox(counter: U64, key: U64) -> U64:
    """Philox4x32-10, one block a row, in integers only. Shapes: words of 32 bits, [4, rows] and [2, rows] -> [4, rows].

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the tests hold Random123's vectors.
    """
    evens, odds = counter[0::2], counter[1::2]
    for round_key in (key + _ROUNDS * _WEYL) & _LOW:
        products = evens * _MULTIPLIERS
        evens, odds = (products >> _SHIFT)[::-1] ^ odds ^ round_key, (products & _LOW)[::-1]
    return np.stack((evens, odds), axis=1).reshape(4, -1)


def keyed_uniforms(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int], purpose: Purpose = Purpose.TOKEN
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) a row, of 53 bits. Shapes: [rows] each -> [rows]."""
    seed = np.array([each & 0xFFFF_FFFF_FFFF_FFFF for each in seeds], np.uint64)
    choice, position = np.array(choices, np.uint64), np.array(positions, np.uint64)
    counter = np.stack((position & _LOW, position >> _SHIFT, choice, np.full_like(seed, int(purpose))))
    high, low = philox(counter, np.stack((seed & _LOW, seed >> _SHIFT)))[:2]
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    numbers: npt.NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return numbers
