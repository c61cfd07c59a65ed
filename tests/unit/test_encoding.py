"""KV in fewer bits: never further off than is promised, and never decoded unproven."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Corrupt, LayoutMismatch
from core.kv import KVLayout
from kv_transfer.digest import block_digest
from kv_transfer.encoding import Encoding, decode, encode, encoded_bytes, error_bound
from kv_transfer.relayout import from_bfloat16, to_bfloat16

DTYPES = ("float32", "float16", "bfloat16")
Floats = npt.NDArray[np.float32]


def layout(dtype: str, head_dim: int = 8) -> KVLayout:
    return KVLayout(num_layers=2, num_kv_heads=2, head_dim=head_dim, block_size=4, dtype=dtype)


def block_of(numbers: Floats, dtype: str) -> npt.NDArray[np.uint8]:
    stored = to_bfloat16(numbers) if dtype == "bfloat16" else numbers.astype(dtype)
    return stored.reshape(-1).view(np.uint8)


def numbers_of(block: npt.NDArray[np.uint8], dtype: str) -> Floats:
    if dtype == "bfloat16":
        return from_bfloat16(block.view(np.uint16))
    return block.view(dtype).astype(np.float32)


def through(block: npt.NDArray[np.uint8], kv: KVLayout, encoding: Encoding) -> Floats:
    data = encode(block, kv, encoding)
    assert len(data) == encoded_bytes(kv)
    return numbers_of(decode(data, block_digest(data), kv, encoding), kv.dtype).reshape(-1, kv.head_dim)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(Encoding)),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
    st.sampled_from((1e-30, 1e-7, 1e-3, 1.0, 300.0, 6e4, 1e30)),
    st.sampled_from(("normal", "one outlier", "steps")),
)
def test_no_number_is_further_off_than_the_bound(
    encoding: Encoding, dtype: str, seed: int, scale: float, kind: str
) -> None:
    kv, dice = layout(dtype), np.random.default_rng(seed)
    numbers = dice.standard_normal((32, 8)).astype(np.float32)
    if kind == "one outlier":
        numbers[:, 0] *= 1e4
    if kind == "steps":
        numbers = (dice.integers(-254, 255, (32, 8)) / np.float32(2)).astype(np.float32)  # halves of a step: ties
        numbers[:, 0] = 127
    block = block_of(np.clip(numbers * np.float32(scale), -6e4 if dtype == "float16" else -3e38, 6e4), dtype)
    before = numbers_of(block, dtype).reshape(-1, 8).astype(np.float64)
    after = through(block, kv, encoding)
    for vector, decoded in zip(before, after, strict=True):
        largest = float(np.abs(vector).max())
        for number, other in zip(vector, decoded, strict=True):
            assert abs(float(other) - number) <= error_bound(encoding, dtype, abs(number), largest)


def test_the_bound_is_not_a_loose_one() -> None:
    """Some number comes within a tenth of it, so it says something."""
    numbers = np.random.default_rng(0).standard_normal((4096, 8)).astype(np.float32)
    kv = KVLayout(num_layers=1, num_kv_heads=2, head_dim=8, block_size=1024, dtype="float32")
    for encoding in Encoding:
        after = through(block_of(numbers, "float32"), kv, encoding)
        largest = np.abs(numbers).max(axis=1)
        shares = [
            abs(float(after[i, k]) - float(numbers[i, k]))
            / error_bound(encoding, "float32", abs(float(numbers[i, k])), float(largest[i]))
            for i in range(len(numbers))
            for k in range(8)
        ]
        assert 0.9 < max(shares) <= 1


def test_every_fp8_number_comes_back_as_itself() -> None:
    sizes = [m * 2.0**-9 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)]
    assert len(sizes[:-1]) == 127
    numbers = np.zeros((32, 8), np.float32)
    numbers.reshape(-1)[:127] = sizes[:-1]
    numbers.reshape(-1)[128:255] = [-size for size in sizes[:-1]]
    numbers[:, 0] = 448  # the scale of each vector is 1 then
    assert np.array_equal(through(block_of(numbers, "float32"), layout("float32"), Encoding.FP8), numbers)


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros_and_what_is_not_finite_is_found_again(encoding: Encoding, dtype: str) -> None:
    numbers = np.zeros((32, 8), np.float32)
    numbers[3, 2], numbers[5, 1] = np.nan, np.inf
    after = through(block_of(numbers, dtype), layout(dtype), encoding)
    assert np.isnan(after[[3, 5]]).all()
    after[[3, 5]] = 0
    assert not after.any()


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_flipped_bit_anywhere_is_corrupt_scales_included(encoding: Encoding) -> None:
    kv = layout("bfloat16")
    data = encode(block_of(np.ones((32, 8), np.float32), "bfloat16"), kv, encoding)
    digest = block_digest(data)
    for at in range(len(data)):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << at % 8
        with pytest.raises(Corrupt):
            decode(bytes(spoiled), digest, kv, encoding)


def test_a_wrong_length_or_a_type_without_codes_is_refused() -> None:
    data = encode(block_of(np.ones((32, 8), np.float32), "float32"), layout("float32"), Encoding.INT8)
    with pytest.raises(LayoutMismatch, match="bytes, not"):
        decode(data[:-1], block_digest(data[:-1]), layout("float32"), Encoding.INT8)
    with pytest.raises(LayoutMismatch, match="float64 is not encoded"):
        encode(np.zeros(layout("float64").bytes_per_block, np.uint8), layout("float64"), Encoding.INT8)
    with pytest.raises(LayoutMismatch, match="float64 is not encoded"):
        decode(data, block_digest(data), layout("float64"), Encoding.INT8)


def test_what_travels_is_a_quarter_of_float32_and_half_of_16_bits() -> None:
    assert encoded_bytes(layout("float32", 128)) / layout("float32", 128).bytes_per_block == 132 / 512
    assert encoded_bytes(layout("bfloat16", 128)) / layout("bfloat16", 128).bytes_per_block == 132 / 256
