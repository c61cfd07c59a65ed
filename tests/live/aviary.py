"""A cluster of parrots, with the smallest gateway."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster.gateway.streams import Delivered, Ended, StreamOutput, Streams
from cluster.live.cluster import LiveCluster
from cluster.live.config import LiveConfig, NodeSettings, NodeSlot
from cluster.live.head import NodeState
from cluster.live.launcher import Launcher
from core.commands import Tell
from core.events import GatewayEvent
from core.goodput import Outcome
from core.ids import GatewayId, RequestId
from core.timers import Timers
from tests.live.parrot import FirstFit, question
from tests.live.posts import until


class Door:
    """A gateway's shell that writes down what clients would get."""

    def __init__(self) -> None:
        self.streams = Streams(GatewayId("gateway@1"))
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, Ended] = {}
        self.cluster: LiveCluster | None = None

    def join(self, cluster: LiveCluster) -> None:
        self.cluster = cluster
        cluster.join(self.streams.gateway, self.handle)

    def handle(self, event: GatewayEvent, now: float) -> None:
        self.carry(self.streams.handle(event, now))

    def carry(self, outputs: list[StreamOutput]) -> None:
        assert self.cluster is not None
        for output in outputs:
            match output:
                case Tell():
                    self.cluster.tell(output)
                case Delivered():
                    self.tokens.setdefault(output.request, []).extend(output.token_ids)
                case Ended():
                    assert output.request not in self.ends
                    self.ends[output.request] = output

    def open(self, name: str, *words: int) -> None:
        self.carry(self.streams.open(question(name, words), time.monotonic()))

    def cancel(self, name: str) -> None:
        self.carry(self.streams.cancel(RequestId(name), time.monotonic()))


@dataclass
class Aviary:
    """A cluster of parrots that is not started yet."""

    cluster: LiveCluster
    scheduler: FirstFit
    door: Door = field(default_factory=Door)

    async def ask(self, name: str, *words: int) -> Outcome:
        self.door.open(name, *words)
        await until(lambda: name in self.door.ends)
        return self.door.ends[name].outcome

    @property
    def nodes(self) -> dict[str, NodeState]:
        return {node.slot: node for node in self.cluster.state().nodes}

    def pid(self, slot: str) -> int:
        return self.nodes[slot].pid


def parrots(
    slots: tuple[NodeSlot, ...],
    launcher: Launcher,
    timers: Timers = Timers(),  # noqa: B008 - frozen
    config: LiveConfig | None = None,
) -> Aviary:
    """A cluster with one parrot in each slot; `config` says all of it but how nodes are started."""
    config = config or LiveConfig(NodeSettings(Path(__file__).parent), slots, timers=timers)
    scheduler = FirstFit()
    aviary = Aviary(LiveCluster(config, scheduler, launcher=launcher), scheduler)
    aviary.door.join(aviary.cluster)
    return aviary


def exists(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
