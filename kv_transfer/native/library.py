"""The compiled copy, as functions of addresses. Each call releases the interpreter lock."""

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from core.native_build import BuildFailed, built_library

LOG = logging.getLogger("penstock.native")

SOURCE = Path(__file__).with_name("blocks.c")

MIN_BLOCK_BYTES = 241
"""Smaller blocks have digests of another kind, which only the xxhash package computes."""


class Outcome(IntEnum):
    """Why a copy stopped; the same as `enum outcome` in blocks.c."""

    FINE = 0
    REUSED_BEFORE = 1
    REUSED_DURING = 2
    WRONG_DIGEST = 3
    NO_SUCH_BLOCKS = 4


class Pools(ctypes.Structure):
    """The same as `struct pools` in blocks.c. Whoever fills it keeps the memory alive."""

    _fields_ = (
        ("their_generations", ctypes.c_void_p),
        ("theirs", ctypes.c_void_p),
        ("own_generations", ctypes.c_void_p),
        ("own", ctypes.c_void_p),
        ("block_bytes", ctypes.c_size_t),
        ("num_theirs", ctypes.c_int64),
        ("num_own", ctypes.c_int64),
    )


class Finding(ctypes.Structure):
    """The same as `struct finding` in blocks.c."""

    _fields_ = (("column", ctypes.c_int64), ("generation", ctypes.c_uint64))


Hook = ctypes.CFUNCTYPE(None, ctypes.c_int64)
NO_HOOK = Hook()


class Native:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        bytes_at, count = ctypes.c_char_p, ctypes.c_int64
        copy_blocks, digest = library["penstock_copy_blocks"], library["penstock_digest"]
        pools, finding = ctypes.POINTER(Pools), ctypes.POINTER(Finding)
        copy_blocks.argtypes = (pools, bytes_at, bytes_at, count, count, count, Hook, finding)
        digest.argtypes, digest.restype = (bytes_at, ctypes.c_size_t, bytes_at), None
        self.copy_blocks: Callable[..., int] = copy_blocks
        self._digest: Callable[..., None] = digest

    def digest(self, block: bytes) -> bytes:
        """The digest of a block of at least `MIN_BLOCK_BYTES`, to be compared with the package's."""
        made = ctypes.create_string_buffer(16)
        self._digest(block, len(block), made)
        return made.raw


@functools.cache
def load() -> Native | None:
    """The library, compiled first where need be; None, and the reason logged once, where there is none."""
    if os.environ.get("PENSTOCK_NATIVE") == "0":
        LOG.info("the native KV copy is off (PENSTOCK_NATIVE=0): numpy copies, block by block")
        return None
    try:
        return Native(built_library(SOURCE))
    except (BuildFailed, OSError, AttributeError) as error:
        LOG.warning("no native KV copy; numpy copies, small blocks slower: %s", error)
        return None
