"""Finds the GPUs of this machine, in a process of its own: what asks CUDA holds hundreds of MiB of each until it ends.

`python -m cluster.gpu_probe` prints one line of JSON: the GPUs, or why a node could not use any.
"""

import importlib
import json
import subprocess
import sys

from cluster.live.gpus import Gpu
from core.errors import ConfigError

PROBE_S = 120.0
"""Importing torch and making a context on eight cards takes some tens of seconds on a cold machine."""


def found_gpus() -> tuple[Gpu, ...]:
    """The GPUs that nodes may use; CUDA_VISIBLE_DEVICES narrows them. Raises ConfigError where there is none."""
    command = [sys.executable, "-m", "cluster.gpu_probe"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PROBE_S)
        return gpus_in(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise ConfigError([f"--device cuda: CUDA did not answer within {PROBE_S:g} s; use --device cpu"]) from error
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().rpartition("\n")[2]
        raise ConfigError([f"--device cuda: looking for GPUs failed: {last}; use --device cpu"]) from error


def gpus_in(printed: str) -> tuple[Gpu, ...]:
    """What the probe printed. Raises ConfigError with why there is none."""
    last = printed.strip().rpartition("\n")[2]
    try:
        found = json.loads(last)
        why, gpus = found["why"], tuple(Gpu(*row) for row in found["gpus"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"--device cuda: looking for GPUs printed {last[:200]!r}; use --device cpu"]) from error
    if why or not gpus:
        raise ConfigError([f"--device cuda: {why or 'no GPU'}; use --device cpu"])
    return gpus


def probe() -> str:
    """The line."""
    why, gpus = _why_not(), []
    if not why:
        cuda = importlib.import_module("torch").cuda
        for index in range(cuda.device_count()):
            gpus.append((cuda.get_device_name(index), *cuda.mem_get_info(index)))
    return json.dumps({"why": why, "gpus": gpus})


def _why_not() -> str:
    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, so no GPU can be used; install a CUDA build of torch"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU or no driver"
    from kv_transfer.cuda_device import can_run

    if why := can_run():
        return f"KV in device memory needs CuPy: {why}"
    return ""


if __name__ == "__main__":
    print(probe())
