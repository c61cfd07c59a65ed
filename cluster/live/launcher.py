"""What starting nodes takes, whatever they run on."""

from collections.abc import Callable
from typing import Protocol

from cluster.live.orders import NodeOrder, StartedNode

LOOPBACK = "127.0.0.1"

Progress = Callable[[str, float], None]
"""Called with the phase of a start and its share done, 0 to 1."""


class RunningNode(Protocol):
    """One incarnation that was started."""

    @property
    def started(self) -> StartedNode:
        """Who it is."""

    @property
    def actor_id(self) -> str:
        """The id of the actor that it runs in; empty where it is a process of its own."""

    async def exited(self) -> str:
        """Returns why, once the node is gone; may be awaited by one task at a time."""

    async def stop(self) -> None:
        """Ends it by force and returns when nothing is left of it; fine if it is gone already."""


class Launcher(Protocol):
    """Starts nodes."""

    async def open(self) -> str:
        """Gets ready to start nodes; returns the address of this host at which they will reach the head."""

    async def start(self, order: NodeOrder, progress: Progress) -> RunningNode:
        """Starts a node and waits until it runs. Raises ConfigError where the operator must act, else NodeLost."""

    async def close(self) -> None:
        """Gives back whatever was needed to start nodes, which have all been stopped."""
