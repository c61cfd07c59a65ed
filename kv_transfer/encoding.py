"""KV in fewer bits while it travels, for links slower than memory. No link uses it; docs/decisions/0012 says why.

Every vector of a block (one head, layer, k or v, and token) has a scale of its own: the largest size in it, divided by
the largest that a code can say. An encoded block is one range of bytes, so one digest covers scales and codes alike:

    float32 scales [kv_head][layer][k/v][token]   little-endian
    u8 codes       [kv_head][layer][k/v][token][head_dim]

int8: the code is the nearest whole multiple of the scale. fp8: the number over the scale as e4m3 (4 bits of exponent, 3
of mantissa, up to 448, without infinities), to nearest, ties to even. A vector with a number in it that is not finite
has a scale of NaN, and decodes to NaN throughout: it stays something that the sampler finds.
"""

from enum import StrEnum
from functools import cache

import numpy as np
import numpy.typing as npt

from core.errors import Corrupt, LayoutMismatch
from core.kv import DTYPE_BYTES, KVLayout
from kv_transfer.digest import block_digest
from kv_transfer.relayout import from_bfloat16, to_bfloat16

SCALE_BYTES = 4
TINY = 2.0**-100
"""A vector in which nothing is larger decodes to zeros: its scale might be no normal float32."""

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""How far, in its own size, a number may be from the nearest that the type holds."""

_FLOOR = {"float32": TINY, "float16": 2.0**-25, "bfloat16": TINY}
"""The same for numbers too small for that: half of the type's smallest, or what `TINY` gives up."""

_SLACK = 1 + 2.0**-20
"""For the scale and the division by it, which float32 rounds as well."""


class Encoding(StrEnum):
    """In which codes KV travels."""

    INT8 = "int8"
    FP8 = "fp8"


_LARGEST = {Encoding.INT8: 127.0, Encoding.FP8: 448.0}


def encoded_bytes(layout: KVLayout) -> int:
    """The size of an encoded block: of float32 about a quarter, of 16-bit types about a half."""
    return _num_vectors(layout) * (SCALE_BYTES + layout.head_dim)


def encode(block: Bytes, layout: KVLayout, encoding: Encoding) -> bytes:
    """A block as it travels; its digest is `block_digest` of that. Raises LayoutMismatch for a type without codes."""
    numbers = _as_floats(block, layout)
    largest = np.abs(numbers).max(axis=1, initial=0.0, keepdims=True)
    scales: Floats = largest / np.float32(_LARGEST[encoding])
    scales[largest < TINY] = 0
    scales[~np.isfinite(largest)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scales > 0, numbers / scales, np.float32(0))
    codes = _to_int8(steps) if encoding is Encoding.INT8 else _to_e4m3(steps)
    return scales.astype("<f4").tobytes() + codes.tobytes()


def decode(data: bytes, digest: bytes, layout: KVLayout, encoding: Encoding) -> Bytes:
    """The block again, within `error_bound`; nothing is decoded that is not what was digested.

    Raises: Corrupt for bytes with another digest; LayoutMismatch for a wrong length or type.
    """
    if block_digest(data) != digest:
        raise Corrupt("the digest of an encoded block is not the one that was lent")
    if len(data) != encoded_bytes(layout):
        raise LayoutMismatch(f"an encoded block has {len(data)} bytes, not {encoded_bytes(layout)}")
    vectors = _num_vectors(layout)
    scales = np.frombuffer(data, "<f4", vectors).astype(np.float32).reshape(vectors, 1)
    codes = np.frombuffer(data, np.uint8, offset=vectors * SCALE_BYTES).reshape(vectors, layout.head_dim)
    steps = codes.view(np.int8).astype(np.float32) if encoding is Encoding.INT8 else _e4m3_values()[codes]
    return _as_block(steps * scales, layout)


def error_bound(encoding: Encoding, dtype: str, size: float, largest: float) -> float:
    """How far a decoded number may be from the one encoded.

    `size` is its absolute value, `largest` that of its vector. int8 is off by half a step of the vector's scale, so by
    1/254 of `largest`; fp8 by 1/16 of the number itself, or where it is small by 1/458,752 of `largest`. The type of
    the block then rounds once more.
    """
    step = largest / _LARGEST[encoding]
    coded = step / 2 if encoding is Encoding.INT8 else max(size * 2.0**-4, step * 2.0**-10)
    coded += largest * 2.0**-22  # the scale and the quotient were rounded
    return (coded + (size + coded) * _UNIT[dtype]) * _SLACK + _FLOOR[dtype]


def _num_vectors(layout: KVLayout) -> int:
    return layout.num_kv_heads * layout.num_layers * 2 * layout.block_size


def _as_floats(block: Bytes, layout: KVLayout) -> Floats:
    """Shapes: [bytes_per_block] -> [vectors, head_dim]. Exact."""
    if layout.dtype not in _UNIT:
        raise LayoutMismatch(f"KV of type {layout.dtype} is not encoded")
    stored = {2: np.uint16, 4: np.float32}[DTYPE_BYTES[layout.dtype]]
    numbers = block.view(stored).reshape(_num_vectors(layout), layout.head_dim)
    if layout.dtype == "bfloat16":
        return from_bfloat16(numbers)
    return numbers.view(layout.dtype).astype(np.float32)


def _as_block(numbers: Floats, layout: KVLayout) -> Bytes:
    if layout.dtype not in _UNIT:
        raise LayoutMismatch(f"KV of type {layout.dtype} is not encoded")
    if layout.dtype == "bfloat16":
        return to_bfloat16(numbers).reshape(-1).view(np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        return numbers.astype(layout.dtype).reshape(-1).view(np.uint8)


def _to_int8(steps: Floats) -> npt.NDArray[np.int8]:
    whole: npt.NDArray[np.int8] = np.clip(np.rint(steps), -127, 127).astype(np.int8)
    return whole


def _to_e4m3(steps: Floats) -> Bytes:
    """The bits of the nearest e4m3. Between 2^-6 and 448 by rounding float32's mantissa; below, in steps of 2^-9."""
    bits = np.minimum(np.abs(steps), np.float32(448)).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
    small = np.rint(bits.view(np.float32) * np.float32(512)).astype(np.uint32)
    is_normal = bits.view(np.float32) >= 2.0**-6
    codes = np.where(is_normal, rounded - np.uint32((127 - 7) << 3), small)
    signed: Bytes = (codes | (np.signbit(steps).astype(np.uint32) << np.uint32(7))).astype(np.uint8)
    return signed


@cache
def _e4m3_values() -> Floats:
    """What each of the 256 codes says."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    size = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa * 2.0**-9)
    values = np.where(codes & 127 == 127, np.nan, size) * np.where(codes & 128, -1, 1)
    return values.astype(np.float32)
