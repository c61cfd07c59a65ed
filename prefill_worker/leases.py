"""The blocks that this node has offered: which, to whom, whether claimed, until when."""

from dataclasses import dataclass

from core.ids import AttemptId, NodeId
from core.kv import KVHandle
from core.lifecycle import LeaseState
from engine.blocks import BlockPool
from prefill_worker.attempt import Prefill
from prefill_worker.config import PrefillConfig


@dataclass(slots=True)
class Lease:
    """One attempt's lease; it grows as chunks are sealed. `expires_at` counts only while GRANTED, and does not move
    where it `is_fixed`."""

    reader: NodeId
    expires_at: float
    state: LeaseState = LeaseState.GRANTED
    is_fencing: bool = False
    is_fixed: bool = False


class LeaseBook:
    """Grants, claims and ends leases.

    Owns: every lease that is GRANTED or CLAIMED; ends are final, an ended lease is forgotten.
    Invariant: a claimed lease never ends by time: the reader may be copying.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._leases: dict[AttemptId, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def of(self, attempt: AttemptId) -> Lease | None:
        """The open lease of this attempt."""
        return self._leases.get(attempt)

    def is_claimed(self, attempt: AttemptId) -> bool:
        """Whether a reader may be copying."""
        lease = self._leases.get(attempt)
        return lease is not None and lease.state is LeaseState.CLAIMED

    def grant(self, attempt: AttemptId, reader: NodeId, now: float) -> None:
        """Open a lease."""
        assert attempt not in self._leases, f"{attempt} has a lease"
        self._leases[attempt] = Lease(reader, now + self._lease_s)

    def grant_for(self, attempt: AttemptId, reader: NodeId, claim_s: float, now: float) -> None:
        """Open a lease that is to be claimed within `claim_s`, whatever the reader waits for: a client waits, too."""
        self.grant(attempt, reader, now)
        self._leases[attempt].expires_at, self._leases[attempt].is_fixed = now + claim_s, True

    def renew(self, attempt: AttemptId, reader: NodeId, now: float) -> None:
        """The reader still wants it."""
        lease = self._leases.get(attempt)
        if lease is not None and lease.reader == reader and not lease.is_fixed:
            lease.expires_at = max(lease.expires_at, now + self._lease_s)

    def claim(self, attempt: AttemptId, reader: NodeId) -> bool:
        """Pin the lease; False where there is none for this reader, or somebody has claimed it."""
        lease = self._leases.get(attempt)
        if lease is None or lease.reader != reader or lease.state is not LeaseState.GRANTED:
            return False
        lease.state = LeaseState.CLAIMED
        return True

    def end(self, attempt: AttemptId) -> None:
        """Released, expired, revoked or fenced."""
        self._leases.pop(attempt, None)

    def revoke_unclaimed(self, attempt: AttemptId) -> None:
        """End the lease unless it is claimed."""
        if not self.is_claimed(attempt):
            self.end(attempt)

    def expired(self, now: float) -> list[AttemptId]:
        """Unclaimed leases whose time is over."""
        return [
            attempt
            for attempt, lease in self._leases.items()
            if lease.state is LeaseState.GRANTED and lease.expires_at <= now
        ]


def next_handle(prefill: Prefill, pool: BlockPool, config: PrefillConfig) -> KVHandle | None:
    """The sealed blocks that were not offered yet, which now are; None where there are none."""
    first = prefill.num_offered
    if prefill.num_sealed == first:
        return None
    blocks = prefill.table[first : prefill.num_sealed]
    prefill.num_offered = prefill.num_sealed
    return KVHandle(
        prefill.id, config.node, config.layout, first, blocks, pool.generations(blocks), pool.digests(blocks)
    )
