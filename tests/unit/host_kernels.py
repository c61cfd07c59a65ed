"""The device kernels' own text, compiled for the host: a launch runs all its threads one after the other."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np

from kv_transfer.gather import HOST_SOURCE, NUM_THREADS


class Place(ctypes.Structure):
    """What CUDA calls dim3, as far as it is used."""

    _fields_ = (("x", ctypes.c_uint),)


class HostKernels:
    """Compiled with checks for undefined behaviour, which end the process."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        assert compiler, "a C compiler is needed, as for the native operators"
        (folder / "gather.c").write_text(HOST_SOURCE)
        flags = ["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unused-function", "-fsanitize=undefined"]
        flags += ["-fno-sanitize-recover", "-static-libubsan"]
        subprocess.run([compiler, *flags, "-o", folder / "gather.so", folder / "gather.c"], check=True)
        self._library = ctypes.CDLL(str(folder / "gather.so"))
        names = ("threadIdx", "blockIdx", "gridDim")
        self._thread, self._program, self._programs = (Place.in_dll(self._library, name) for name in names)

    def launch(self, kernel: str, num_programs: int, *arguments: object) -> None:
        """Pass arrays, pointers as numpy's u64, and counts."""
        self._programs.x = num_programs
        passed = [_passed(each) for each in arguments]
        for self._program.x, self._thread.x in itertools.product(range(num_programs), range(NUM_THREADS)):
            self._library[kernel](*passed)


def _passed(argument: object) -> ctypes.c_void_p | ctypes.c_int64:
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, np.uint64):
        return ctypes.c_void_p(int(argument))
    assert isinstance(argument, int | np.int64)
    return ctypes.c_int64(int(argument))
