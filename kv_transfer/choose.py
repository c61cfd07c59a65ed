"""Which transport a pair of nodes uses, and the sentence that says so at start."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs, as far as it decides which memory can be shared.

    `gpu` names the card that its KV lies on, the same in every process of the host; empty for host memory.
    """

    host: str
    pid: int
    gpu: str = ""

    @classmethod
    def here(cls, gpu: str = "") -> "Place":
        """This process. The network namespace is part of the host: abstract sockets end at its border."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(f"{boot}/{os.stat('/proc/self/ns/net').st_ino}", os.getpid(), gpu)


@dataclass(frozen=True, slots=True)
class Way:
    """One transport. `joins` says whether it can work between two places, where both sides have it.

    `falls_back`: when it fails though the owner may be alive, the pair goes on by its next transport.
    `is_staged`: KV of a GPU goes through host memory on its way.
    """

    name: str
    needs: str
    joins: Callable[[Place, Place], bool]
    falls_back: bool = False
    is_staged: bool = False


def _one_process(one: Place, other: Place) -> bool:
    return one == other


def _one_host(one: Place, other: Place) -> bool:
    return one.host == other.host


def _two_gpus(one: Place, other: Place) -> bool:
    """NCCL refuses two ranks on one GPU."""
    return not one.gpu or one.host != other.host or one.gpu != other.gpu


def _anywhere(one: Place, other: Place) -> bool:
    return True


WAYS = (
    Way("inproc", "both nodes in one process", _one_process),
    Way("cuda_ipc", "KV on GPUs of one host, in one network namespace", _one_host, falls_back=True),
    Way("shm", "both nodes on one host, in one network namespace", _one_host),
    Way("nixl", "NIXL on both sides", _anywhere, falls_back=True),
    Way("nccl", "KV on a GPU of its own for each node", _two_gpus, falls_back=True),
    Way("gloo", "a private network between the two nodes", _anywhere, is_staged=True),
)
"""The transports, best first."""

STAGED = "; KV of GPUs is staged through host memory"

NAMES = tuple(way.name for way in WAYS)
AUTO, MEASURED = "auto", "measured"
ASKABLE = (AUTO, MEASURED, *NAMES)


@dataclass(frozen=True, slots=True)
class Choice:
    """A pair's transports, best first, and `message` for the log at start."""

    order: tuple[Way, ...]
    message: str

    @property
    def transport(self) -> str:
        """The one to use."""
        return self.order[0].name


def check_asked(asked: str) -> None:
    """Raises ConfigError for a transport that there is not; `auto`, `measured` and the names in `NAMES` pass."""
    if asked not in ASKABLE:
        raise ConfigError([f"transport: {asked!r} is not known; choose one of {', '.join(ASKABLE)}"])


def possible(asked: str, one: Place, other: Place, both_have: Collection[str]) -> tuple[Way, ...]:
    """What can join two places, best first: all that both sides have and that works there, or only the one asked for.

    Raises: ConfigError when the name is unknown or nothing is left.
    """
    check_asked(asked)
    ways = [way for way in WAYS if way.name in both_have and way.joins(one, other)]
    if asked in NAMES:
        needs = next(way.needs for way in WAYS if way.name == asked)
        if asked not in [way.name for way in ways]:
            raise ConfigError([f"transport: {asked} needs {needs}, and these two have not"])
        return tuple(way for way in ways if way.name == asked)
    if not ways:
        had = ", ".join(name for name in NAMES if name in both_have) or "none"
        raise ConfigError([f"transport: nothing joins these two; both have: {had}"])
    return tuple(ways)


def staging(way: Way, one: Place, other: Place) -> str:
    """What is to be said of a way besides its reason: whether it takes KV of a GPU through host memory."""
    return STAGED if way.is_staged and (one.gpu or other.gpu) else ""


def choose(asked: str, ways: tuple[Way, ...], speeds: Mapping[str, float]) -> Choice:
    """The transport of a pair, out of what is possible. `speeds`: bytes a second, of those that were measured.

    Measured speeds decide only where all were measured: one that cannot be measured is not known to be slower.
    """
    order = ways
    if asked == MEASURED and len(ways) > 1 and all(way.name in speeds for way in ways):
        order = tuple(sorted(ways, key=lambda way: -speeds[way.name]))
        why = "measured: " + ", ".join(f"{way.name} {speeds[way.name] / 1e9:.2g} GB/s" for way in order)
    else:
        why = "as asked" if asked in NAMES else f"automatic: {ways[0].needs}"
    others = ", ".join(way.name for way in order[1:])
    return Choice(order, f"{order[0].name} ({why})" + (f"; also possible: {others}" if others else ""))
