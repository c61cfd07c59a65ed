"""Compiles a C source once per machine and source, into a cache of the user's own. The one part of `core` that acts.

It stands here because the engine and the transports both compile what runs on a CPU, and neither may import the other.
"""

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

_TIMEOUT_S = 120.0
_FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread", "-w")
"""No -ffast-math: it would assume that NaN does not exist, and would let sums be reordered from case to case."""
_CPU_WORDS = ("model name", "flags", "CPU implementer", "CPU part", "CPU variant", "Features")


class BuildFailed(Exception):
    """Why there is no library, in words for a log."""


def built_library(source: Path) -> Path:
    """The compiled library of a source and what lies beside it, compiled now if it is not in the cache.

    Raises: BuildFailed.
    """
    compiler = _compiler()
    command = [compiler, *_FLAGS, _tuning()]
    library = _cache() / f"{source.stem}-{_key(command, source)}.so"
    if not library.exists():
        _compile(command, source, library)
    _check_owned(library)
    return library


def _compiler() -> str:
    asked = os.environ.get("CC")
    for name in (asked,) if asked else ("cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise BuildFailed(f"CC names {asked!r}, which is not found" if asked else "no C compiler is installed (cc, gcc)")


def _tuning() -> str:
    """Compile for this very CPU: the key has its name, so another machine with the same home compiles its own."""
    return "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"


def _key(command: list[str], source: Path) -> str:
    """What the library depends on: the sources, the command, the compiler's version and the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        version = subprocess.run([command[0], "--version"], capture_output=True, timeout=_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildFailed(f"{command[0]} or /proc/cpuinfo cannot be asked: {error}") from error
    cpu = [platform.machine(), *(line for line in lines if line.startswith(_CPU_WORDS))]
    sources = [each.read_bytes() for each in sorted(source.parent.glob("*.[ch]"))]
    parts = [*sources, repr(command).encode(), version, "\n".join(cpu).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _cache() -> Path:
    """A folder that only this user can write; where there is no home to write to, under the temporary folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    reasons = []
    for folder in (Path(home) / "penstock", Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owned(folder)
        except (OSError, BuildFailed) as error:
            reasons.append(str(error))
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reasons.append(f"{folder} is not writable")
    raise BuildFailed(f"no folder can be used as a cache: {'; '.join(reasons)}")


def _check_owned(path: Path) -> None:
    """What is loaded runs as this user: refuse what others own or could have written."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildFailed(f"{path} is a link, belongs to another user, or can be written by others")


def _compile(command: list[str], source: Path, library: Path) -> None:
    """Compile beside the final place and rename: processes that compile at once overwrite each other with the same."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        made = Path(folder) / library.name
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BuildFailed(f"{command[0]} could not be run: {error}") from error
        if done.returncode:
            words = done.stderr.strip().splitlines()
            raise BuildFailed(f"{command[0]} refused {source.name}: {words[0] if words else done.returncode}")
        made.chmod(0o700)
        made.replace(library)
