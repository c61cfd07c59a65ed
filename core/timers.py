"""The waits of the protocol, in one place and in one order. A timer decides when to give up, never whether reuse is
safe."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Timers:
    """All in seconds. Each starts at its own step of the protocol, never at arrival or in a peer's queue."""

    tick_s: float = 0.25
    heartbeat_s: float = 1.0
    renewal_s: float = 2.0
    progress_s: float = 2.0
    claim_s: float = 2.0
    suspect_s: float = 3.0
    dead_s: float = 5.0
    lease_s: float = 10.0
    handoff_s: float = 30.0
    quarantine_s: float = 30.0
    drain_s: float = 120.0
    silence_s: float = 5.0
    gap_s: float = 1.0
    resume_s: float = 5.0
    step_s: float = 300.0

    def problems(self) -> list[str]:
        """What is wrong with the order of these timers; empty when they are sound."""
        names = ("progress_s", "claim_s", "suspect_s", "dead_s", "lease_s", "handoff_s", "quarantine_s", "drain_s")
        strict = {"suspect_s", "dead_s", "lease_s", "handoff_s", "drain_s"}
        found = []
        for before, after in pairwise(names):
            low, high = getattr(self, before), getattr(self, after)
            if low > high or (low == high and after in strict):
                found.append(f"timers.{before} ({low:g} s) must be below timers.{after} ({high:g} s)")
        if self.heartbeat_s >= self.suspect_s:
            found.append(
                f"timers.heartbeat_s ({self.heartbeat_s:g} s) must be below timers.suspect_s ({self.suspect_s:g} s)"
            )
        if self.renewal_s * 4 >= self.lease_s:
            both = f"timers.renewal_s ({self.renewal_s:g} s) must be below a quarter of timers.lease_s"
            found.append(f"{both} ({self.lease_s:g} s)")
        return found
