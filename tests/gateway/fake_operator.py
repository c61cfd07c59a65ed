"""An operator of two slots, for the ports that speak for one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.operator import DecisionFeed, SlotView
from core.decisions import Decision
from core.ids import NodeId
from core.mix import Mix, mix_of


class FakeOperator:
    """Two slots whose mixes are what they are told. Cannot catch what a scheduler makes of them."""

    def __init__(self, state: Callable[[], ClusterState]) -> None:
        self.mixes = {"p": mix_of("prefill", 512, 16), "d": mix_of("decode", 512, 16)}
        self.lifted: list[tuple[str, ...]] = []
        self.drained: list[str] = []
        self.for_restart: list[bool] = []
        self.drain_s = 0.01
        self.feed = DecisionFeed()
        self.shown = state

    def slots(self) -> tuple[SlotView, ...]:
        return tuple(
            SlotView(n, "running", m, NodeId(f"{n}@1"), 2, n in self.drained, False) for n, m in self.mixes.items()
        )

    def controller(self) -> str:
        return "advise"

    def set_mixes(self, mixes: Mapping[str, Mix]) -> None:
        self.mixes |= mixes

    def lift_mixes(self, slots: Iterable[str]) -> None:
        self.lifted.append(tuple(slots))

    async def drain(self, slot: str, for_restart: bool = False) -> int:
        self.drained.append(slot)
        self.for_restart.append(for_restart)
        await asyncio.sleep(self.drain_s)
        return 3

    async def flush(self) -> Mapping[str, int | None]:
        return {"p": 7, "d": None}

    def watch(self, num_past: int) -> AsyncIterator[tuple[int, Decision]]:
        return self.feed.watch(num_past)
