"""How much memory this machine, or the container we run in, has left."""

from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available_memory_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """What new processes may take without swapping, page cache counted as free: the least of what the kernel says."""
    return min((_of_machine(meminfo), *_of_container(cgroup)))


def _of_machine(meminfo: Path) -> int:
    words = next(line.split() for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(words[1]) * 1024


def _of_container(cgroup: Path) -> Iterator[int]:
    """The container's limit less what it cannot give back; nothing where it has none."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stats = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if limit != "max":
        yield max(0, int(limit) - used + int(stats.get("inactive_file", 0)))
