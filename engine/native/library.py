"""The compiled kernels, as functions of addresses and sizes. Each call releases the interpreter lock."""

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from core.native_build import BuildFailed
from engine.memory import KVMemory
from engine.native.build import built_library

LOG = logging.getLogger("penstock.native")

Kernel = Callable[..., None]
"""Arguments in the order of its declaration in kernels.c; tensors are contiguous and passed by address."""

_P, _N, _F = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float
_ARGUMENTS = {
    "rms_norm": (_P, _P, _P, _N, _N, _F, _N),
    "add_rms_norm": (_P, _P, _P, _P, _N, _N, _F, _N),
    "gated": (_P, _P, _N, _N, _N, _N),
    "store": (_P, _N, _P, _N, _N, _P, _P, _P, _P, _P, _F, _P, _N),
    "decode": (_P, _N, _P, _N, _N, _P, _P, _P, _N, _N, _F, _P, _N),
    "linear": (_P, _P, _P, _P, _N, _N, _N, _N),
    "linear_int8": (_P, _P, _P, _P, _P, _N, _N, _N, _N),
    "unpack_int8": (_P, _P, _P, _N, _N, _N),
    "stop_threads": (),
}


class Place(ctypes.Structure):
    """A KV memory as the kernels see it; the same as `struct place` in kernels.c."""

    _fields_ = (
        ("blocks", ctypes.c_void_p),
        ("num_kv_heads", ctypes.c_ssize_t),
        ("num_layers", ctypes.c_ssize_t),
        ("block_size", ctypes.c_ssize_t),
        ("head_dim", ctypes.c_ssize_t),
    )

    @property
    def address(self) -> int:
        """Where this structure lies."""
        return ctypes.addressof(self)


class Native:
    """The loaded library.

    Owns: helper threads, which start with the first call that asks for more than one and wait without spinning.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self.rms_norm = self._kernel("rms_norm")
        self.add_rms_norm = self._kernel("add_rms_norm")
        self.gated = self._kernel("gated")
        self.store = self._kernel("store")
        self.decode = self._kernel("decode")
        self.linear = self._kernel("linear")
        self.linear_int8 = self._kernel("linear_int8")
        self.unpack_int8 = self._kernel("unpack_int8")
        self.stop_threads = self._kernel("stop_threads")

    def _kernel(self, name: str) -> Kernel:
        function = self._library[f"penstock_{name}"]
        function.argtypes = _ARGUMENTS[name]
        function.restype = None
        return function

    def place(self, memory: KVMemory) -> Place:
        """A description of a memory, valid as long as the memory's bytes are. Keep it as long as it is passed."""
        layout = memory.shape.layout
        sizes = layout.num_kv_heads, layout.num_layers, layout.block_size, layout.head_dim
        return Place(memory.blocks.data_ptr(), *sizes)


@functools.cache
def load() -> Native | None:
    """The library, compiled first where need be; None, and the reason logged once, where there is none."""
    if os.environ.get("PENSTOCK_NATIVE") == "0":
        LOG.info("native kernels are off (PENSTOCK_NATIVE=0): torch computes everything")
        return None
    try:
        return Native(built_library())
    except (BuildFailed, OSError, AttributeError) as error:
        LOG.warning("no native kernels, torch computes everything and decodes slower: %s", error)
        return None
