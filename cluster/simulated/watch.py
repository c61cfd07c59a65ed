"""What is seen of a run: its trace, what happened in it, and which faults met which states."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

from core.events import Event
from core.ids import Address


class Deed(StrEnum):
    """What machines do where they have to, or may; counted like faults, since a run without it proves nothing of it."""

    PREEMPTED = "row preempted"
    SAVED = "row saved"
    RESTORED = "row restored"
    COPIED = "block copied on write"
    DRAFTED = "token drafted"
    ACCEPTED = "draft accepted"
    MIGRATED = "row migrated"
    STAYED = "row offered and back"


CHECK_EVERY = 50
"""Events of one machine between two full checks of it."""


def _nothing(address: Address, event: Event) -> None:
    """Nobody listens."""


@dataclass(slots=True)
class Watch:
    """Counts and hashes a run.

    Owns: the trace and the counters. `after` is told of every event that a machine has taken.
    """

    num_events: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    after: Callable[[Address, Event], None] = _nothing
    _lines: list[str] = field(default_factory=list)

    def taken(self, now: float, address: Address, event: Event) -> None:
        """A machine has taken an event, and what it asked for is done or on its way."""
        self.num_events += 1
        self._lines.append(f"{now!r} {address} {type(event).__name__}")
        self.after(address, event)

    def trace(self, now: float, line: str) -> None:
        """Put a line into the trace."""
        self._lines.append(f"{now!r} {line}")

    def happened(self, fault: str, times: int = 1) -> None:
        """A fault was injected, or a deed was done."""
        if times:
            self.faults[fault] += times

    def hit(self, state: str, fault: str) -> None:
        """A fault met something in this state."""
        self.hits[state, fault] += 1

    @property
    def trace_hash(self) -> str:
        """Over all that happened; the same seed gives the same one."""
        return blake2b("\n".join(self._lines).encode(), digest_size=16).hexdigest()
