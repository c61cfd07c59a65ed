"""An ended request as log, traces and dashboard tell it."""

from dataclasses import dataclass

from cluster.gateway.ledger import RequestLedger
from cluster.metrics.routes_seen import RequestNodes


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A ledger with its place among all that ended, the nodes, and the moment, in seconds since the epoch.

    `lost_at`: where it lost its targets; empty where it met them, or had none.
    """

    number: int
    ledger: RequestLedger
    nodes: RequestNodes
    ended_wall_s: float
    lost_at: str = ""

    @property
    def received_wall_s(self) -> float:
        """When it came, since the epoch."""
        return self.ended_wall_s - self.ledger.wall_s
