"""One writer at a time, by a Kubernetes Lease: whoever holds it and renews it in time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.kube.cluster_api import KubeError, Trouble

DURATION_S = 30.0
NOBODY = ""
RELEASED_S = 1.0
"""A Lease's duration must be above 0, also where nobody holds it."""


@dataclass(frozen=True, slots=True)
class LeaseState:
    """A Lease as it was read. `version` changes with every write, so that its age needs no common clock."""

    holder: str
    version: str
    duration_s: float
    num_transitions: int


class LeaseApi(Protocol):
    """Where Leases are. Calls block, and raise KubeError."""

    def read_lease(self, name: str) -> LeaseState | None:
        """The Lease; None where there is none yet."""

    def write_lease(self, name: str, holder: str, duration_s: float, before: LeaseState | None) -> None:
        """Takes or renews it, of the version that was read."""


class LeaseHolder:
    """A `Leadership` by a Lease.

    Owns: what was seen of it last, and since when by our own clock. It is taken over where it has not changed for as
    long as its holder promised to renew it in, and never by comparing clocks of two machines.
    """

    def __init__(self, api: LeaseApi, name: str, me: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._name = name
        self._me = me
        self._clock = clock
        self._seen: LeaseState | None = None
        self._seen_at = 0.0

    def holds(self) -> bool:
        """Renews it where it is ours, takes it where it is free or was left; false where somebody else has it."""
        lease = self._api.read_lease(self._name)
        now = self._clock()
        if lease is not None and (self._seen is None or lease.version != self._seen.version):
            self._seen, self._seen_at = lease, now
        if lease is not None and lease.holder not in (NOBODY, self._me) and now < self._seen_at + lease.duration_s:
            return False
        try:
            self._api.write_lease(self._name, self._me, DURATION_S, lease)
        except KubeError as error:
            if error.trouble is Trouble.CONFLICT:
                return False
            raise
        return True

    def release(self) -> None:
        """Writes that nobody has it, where we do."""
        lease = self._api.read_lease(self._name)
        if lease is not None and lease.holder == self._me:
            self._api.write_lease(self._name, NOBODY, RELEASED_S, lease)
