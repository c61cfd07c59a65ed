"""The file that every measuring command writes with `--json`: figures beside machine, versions and raw samples."""

import argparse
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


def file_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with `--json` and `--plot`, told before a long run instead of after it."""
    asked = ((name, getattr(args, name)) for name in ("json", "plot"))
    return [
        f"--{name} {path}: there is no such folder"
        for name, path in asked
        if path is not None and not Path(path).expanduser().absolute().parent.is_dir()
    ]


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
