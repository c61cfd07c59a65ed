"""The file that every measuring command writes with `--json`: figures beside machine, versions and raw samples."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Figure = float | int | str | bool
Sample = Mapping[str, object]

_PACKAGES = ("penstock", "torch", "transformers", "ray", "grpcio", "protobuf", "numpy")


def write_report(path: str, command: str, figures: Mapping[str, Figure], samples: Sequence[Sample]) -> None:
    """Write the report. Raises OSError where the file cannot be written."""
    report = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "figures": dict(figures),
        "machine": machine(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "samples": list(samples),
    }
    Path(path).write_text(json.dumps(report, indent=2) + "\n")


def machine() -> dict[str, object]:
    """What ran it."""
    return {
        "processor": _cpu_model(),
        "num_cores": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
