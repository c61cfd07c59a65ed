"""The compiled copy: its digest is the package's, and without a compiler the reason is told."""

import logging
import random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.native import library
from kv_transfer.native.library import MIN_BLOCK_BYTES, load

WITHOUT = load() is None


@pytest.mark.skipif(WITHOUT, reason="no C compiler")
@given(st.integers(MIN_BLOCK_BYTES, 5_000), st.integers(0, 2**32))
def test_the_digest_is_that_of_the_package_for_every_length(num_bytes: int, seed: int) -> None:
    native, block = load(), random.Random(seed).randbytes(num_bytes)
    assert native is not None
    assert native.digest(block) == xxhash.xxh3_128_digest(block)


@pytest.mark.skipif(WITHOUT, reason="no C compiler")
@pytest.mark.parametrize("num_bytes", [1024, 1025, 2048, 16_384, 16_385, 65_536, 1 << 20])
def test_the_digest_is_that_of_the_package_where_a_round_or_a_piece_ends(num_bytes: int) -> None:
    native, block = load(), random.Random(num_bytes).randbytes(num_bytes)
    assert native is not None
    assert native.digest(block) == xxhash.xxh3_128_digest(block)


@pytest.mark.parametrize(
    ("variable", "value", "reason"), [("PENSTOCK_NATIVE", "0", "is off"), ("CC", "no-such", "'no-such'")]
)
def test_without_a_library_the_reason_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    load.cache_clear()
    try:
        with caplog.at_level(logging.INFO, library.LOG.name):
            assert load() is None and load() is None
    finally:
        load.cache_clear()
    assert len(caplog.messages) == 1 and reason in caplog.messages[0]
