"""The seam of routing."""

from typing import Protocol

from scheduler.demand import Demand, Refusal, Route
from scheduler.view import ClusterView

__all__ = ["Demand", "Policy", "Refusal", "Route"]


class Policy(Protocol):
    """Chooses; changes nothing."""

    def route(self, demand: Demand, view: ClusterView, now: float) -> Route | Refusal:
        """The nodes for this demand, or why there are none."""
        ...
