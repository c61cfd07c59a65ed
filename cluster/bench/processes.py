"""What processes hold, as the kernel tells it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Held:
    """One process at one moment. Memory without what it shares with others, but for the pages of shared memory."""

    rss_bytes: int
    anonymous_bytes: int
    num_descriptors: int
    num_threads: int
    cpu_s: float


def held_by(pid: int) -> Held | None:
    """What a process holds; None where it is gone."""
    place = Path("/proc") / str(pid)
    try:
        words = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        ticks = (place / "stat").read_text().rpartition(")")[2].split()
        descriptors = len(os.listdir(place / "fd"))
    except (OSError, ValueError):
        return None
    return Held(
        rss_bytes=_kib(words["VmRSS"]),
        anonymous_bytes=_kib(words["RssAnon"]),
        num_descriptors=descriptors,
        num_threads=int(words["Threads"]),
        cpu_s=(int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK"),
    )


def _kib(word: str) -> int:
    return int(word.split()[0]) * 1024


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line through samples: its rise per hour, and twice the standard error of that."""

    per_hour: float
    spread: float


def slope(at_s: Sequence[float], values: Sequence[float]) -> Slope | None:
    """By least squares; None for fewer than three samples. Neighbouring samples are alike, so the spread is a least."""
    num = len(values)
    if num < 3:
        return None
    mean_at, mean = sum(at_s) / num, sum(values) / num
    width = sum((at - mean_at) ** 2 for at in at_s)
    rise = sum((at - mean_at) * (value - mean) for at, value in zip(at_s, values, strict=True)) / width
    rest = sum((value - mean - rise * (at - mean_at)) ** 2 for at, value in zip(at_s, values, strict=True))
    return Slope(rise * 3600, 2 * (rest / (num - 2) / width) ** 0.5 * 3600)
