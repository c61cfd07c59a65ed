"""A cluster as a gateway sees it that is not beside its head: all of it to look at, nothing to change."""

from collections.abc import AsyncIterator, Iterable, Mapping

from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.operator import SlotView
from cluster.live.joined import JoinedCluster
from core.decisions import Decision
from core.errors import ConfigError
from core.mix import Mix


class JoinedOperator:
    """An `Operator` that shows what the head has shown last. Whoever wants a change asks the head's operators' port."""

    def __init__(self, cluster: JoinedCluster) -> None:
        self._cluster = cluster

    def shown(self) -> ClusterState:
        """The cluster as the head said; without a head no node can be reached."""
        return self._cluster.view.state

    def slots(self) -> tuple[SlotView, ...]:
        """Likewise."""
        return self._cluster.view.slots

    def controller(self) -> str:
        """Likewise."""
        return self._cluster.view.controller

    def set_mixes(self, mixes: Mapping[str, Mix]) -> None:
        """Raises ConfigError."""
        raise _not_here()

    def lift_mixes(self, slots: Iterable[str]) -> None:
        """Raises ConfigError."""
        raise _not_here()

    async def drain(self, slot: str, for_restart: bool = False) -> int:
        """Raises ConfigError."""
        raise _not_here()

    async def flush(self) -> Mapping[str, int | None]:
        """Raises ConfigError."""
        raise _not_here()

    def watch(self, num_past: int) -> AsyncIterator[tuple[int, Decision]]:
        """Raises ConfigError."""
        raise _not_here()


def _not_here() -> ConfigError:
    return ConfigError(["this gateway only looks on: ask the operators' port of the head"])
