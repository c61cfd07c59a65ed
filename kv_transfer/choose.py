"""Which transport a pair of nodes uses, and the sentence that says so at start."""

import os
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError

NEEDS = {"inproc": "both nodes in one process", "shm": "both nodes on one host, in one network namespace"}
"""The transports that are built, best first, and what each needs."""

NOT_BUILT = ("cuda_ipc", "nixl", "gloo", "nccl")
"""Names that are reserved; asking for one is refused by name."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs, as far as it decides which memory can be shared."""

    host: str
    pid: int

    @classmethod
    def here(cls) -> "Place":
        """This process. The network namespace is part of the host: abstract sockets end at its border."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(f"{boot}/{os.stat('/proc/self/ns/net').st_ino}", os.getpid())


@dataclass(frozen=True, slots=True)
class Choice:
    """A pair's transport, and `message` for the log at start."""

    transport: str
    message: str


def check_asked(asked: str) -> None:
    """Raises ConfigError for a transport that there is not; `auto` and the names in `NEEDS` pass."""
    known = ", ".join(("auto", *NEEDS))
    if asked in NOT_BUILT:
        raise ConfigError([f"transport: {asked} is not built into this version; choose one of {known}"])
    if asked != "auto" and asked not in NEEDS:
        raise ConfigError([f"transport: {asked!r} is not known; choose one of {known}"])


def choose(asked: str, one: Place, other: Place) -> Choice:
    """The transport between two places: the one asked for, or with `auto` the best that is possible there.

    Raises: ConfigError when the name is unknown or its need is not met.
    """
    check_asked(asked)
    met = {"inproc": one == other, "shm": one.host == other.host}
    possible = [name for name in NEEDS if met[name]]
    if asked != "auto" and asked not in possible:
        raise ConfigError([f"transport: {asked} needs {NEEDS[asked]}, and these two are not"])
    if not possible:
        raise ConfigError([f"transport: none that is built joins two hosts ({', '.join(NOT_BUILT)} are not)"])
    name = possible[0] if asked == "auto" else asked
    why = "as asked" if asked != "auto" else f"automatic: {NEEDS[name]}"
    return Choice(name, f"transport: {name} ({why}); not in this version: {', '.join(NOT_BUILT)}")
