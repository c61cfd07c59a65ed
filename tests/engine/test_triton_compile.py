"""Every Triton kernel, compiled for a GPU on a machine that has none: what the compiler can tell before anything runs.

In processes of their own, where kernels are not made for the interpreter.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'penstock[dev]'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KERNELS = {"rms_norm", "add_rms_norm", "gated", "store", "decode", "combine", "prefill"}
LARGEST = {"H200": 232_448, "L40S": 101_376}
"""Bytes of shared memory that a program may have."""


Launches = list[dict[str, object]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Launches]:
    """What became of each launch, for a device and a model; with a cache of its own, so that all is compiled."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    env |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}

    @functools.cache
    def made(device: str, model: str) -> Launches:
        command = [sys.executable, "-m", "tests.engine.triton_compile", device, model]
        told = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
        assert told.returncode == 0, told.stderr[-3000:]
        found: Launches = json.loads(told.stdout)
        assert {each["kernel"] for each in found} == {f"{name}_kernel" for name in KERNELS}
        return found

    return made


def named(found: Launches, kernel: str) -> Launches:
    chosen = [each for each in found if each["kernel"] == f"{kernel}_kernel"]
    assert len(chosen) == 2, "split and whole, or with and without a window"
    return chosen


@pytest.mark.parametrize(
    ("device", "model"),
    [
        ("H200", "8B"),
        ("H200", "8B in float32"),
        ("H200", "1B in float16"),
        ("H200", "seven heads of 80 on one"),
        ("H200", "heads of 256"),
        ("L40S", "8B"),
    ],
)
def test_every_kernel_compiles_fits_its_device_and_keeps_its_loops_in_registers(
    device: str, model: str, compiled: Callable[[str, str], Launches]
) -> None:
    for each in compiled(device, model):
        assert each["shared"] <= LARGEST[device], each
        assert each["registers"] <= 255 and each["stack"] <= 8, each  # 8: two values are put aside for the loop
        if each["kernel"] in ("decode_kernel", "prefill_kernel") and "float32" not in model:
            assert each["async_copies"] > 0 and each["narrow_accesses"] == 0, each


def test_half_precision_uses_the_tensor_cores_and_decode_leaves_room_for_three_programs(
    compiled: Callable[[str, str], Launches],
) -> None:
    found = compiled("H200", "8B")
    assert [each["tensor_core"] for each in named(found, "decode")] == ["mma.sync"] * 2
    assert [each["tensor_core"] for each in named(found, "prefill")] == ["wgmma"] * 2
    for each in named(found, "decode"):
        assert 3 * (each["shared"] + 1024) <= 233_472, each  # of a multiprocessor; 1 KiB a program is the system's
        assert 3 * 64 * each["registers"] <= 65_536, each
