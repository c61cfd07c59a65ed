"""What was last said of a slot counts: drains by hand, drains for a restart, and mixes, in whatever order they end."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import cast

from cluster.live.cluster import ClusterState, LiveCluster
from cluster.live.config import NodeSlot
from cluster.live.supervisor import SlotState
from cluster.operating import ClusterOperator
from core.decisions import Decision
from core.mix import Mix, mix_of

DECODE, MIXED = mix_of("decode", 512, 16), mix_of("mixed", 256, 8)


class FakeCluster:
    """One slot, `d`, without a node. A drain ends when it is told to: catches what the operator then does to the slot,
    and cannot catch what nodes do."""

    def __init__(self) -> None:
        self.on_decided: Callable[[Decision], object] = lambda decision: None
        self.drains: list[asyncio.Future[int]] = []
        self.reopened: list[Mix] = []
        self.set: list[Mapping[str, Mix]] = []

    async def drain(self, slot: str) -> int:
        self.drains.append(asyncio.get_running_loop().create_future())
        return await self.drains[-1]

    def reopen(self, slot: str, mix: Mix) -> None:
        self.reopened.append(mix)

    def set_mixes(self, mixes: Mapping[str, Mix]) -> None:
        self.set.append(mixes)

    def lift_mixes(self, slots: Iterable[str]) -> None:
        pass

    def state(self) -> ClusterState:
        return ClusterState((), (SlotState("d", "waiting", 0),))


Scenario = Callable[[ClusterOperator, FakeCluster], Awaitable[None]]


def operating(scenario: Scenario) -> None:
    async def run() -> None:
        cluster = FakeCluster()
        await scenario(ClusterOperator(cast(LiveCluster, cluster), [NodeSlot("d", DECODE)], None), cluster)

    asyncio.run(asyncio.wait_for(run(), 20))


async def draining(operator: ClusterOperator, for_restart: bool) -> "asyncio.Task[int]":
    task = asyncio.create_task(operator.drain("d", for_restart))
    await asyncio.sleep(0)
    return task


def is_drained(operator: ClusterOperator) -> bool:
    (slot,) = operator.slots()
    assert slot.is_drained == (slot.mix.role == "closed")
    return slot.is_drained


def test_a_drain_for_a_restart_leaves_the_slot_open_to_its_next_node() -> None:
    async def scenario(operator: ClusterOperator, cluster: FakeCluster) -> None:
        restart = await draining(operator, for_restart=True)
        assert is_drained(operator)
        cluster.drains[0].set_result(2)
        assert await restart == 2
        assert (cluster.reopened, is_drained(operator)) == ([DECODE], False)

    operating(scenario)


def test_a_drain_for_a_restart_does_not_undo_a_later_one_by_hand_whichever_ends_first() -> None:
    for order in ((0, 1), (1, 0)):

        async def scenario(operator: ClusterOperator, cluster: FakeCluster, order: tuple[int, int] = order) -> None:
            drains = [await draining(operator, for_restart=True), await draining(operator, for_restart=False)]
            for number in order:
                cluster.drains[number].set_result(0)
                await drains[number]
            assert (cluster.reopened, is_drained(operator)) == ([], True)

        operating(scenario)


def test_a_drain_by_hand_does_not_undo_a_later_one_for_a_restart_whichever_ends_first() -> None:
    for order in ((0, 1), (1, 0)):

        async def scenario(operator: ClusterOperator, cluster: FakeCluster, order: tuple[int, int] = order) -> None:
            drains = [await draining(operator, for_restart=False), await draining(operator, for_restart=True)]
            for number in order:
                cluster.drains[number].set_result(0)
                await drains[number]
            assert (cluster.reopened, is_drained(operator)) == ([DECODE], False)

        operating(scenario)


def test_of_two_drains_for_a_restart_the_first_does_not_open_what_the_second_still_empties() -> None:
    async def scenario(operator: ClusterOperator, cluster: FakeCluster) -> None:
        first, second = [await draining(operator, for_restart=True) for _ in range(2)]
        cluster.drains[0].set_result(0)
        await first
        assert (cluster.reopened, is_drained(operator)) == ([], True)
        cluster.drains[1].set_result(0)
        await second
        assert (cluster.reopened, is_drained(operator)) == ([DECODE], False)

    operating(scenario)


def test_a_mix_that_was_set_meanwhile_stands_and_one_from_before_comes_back() -> None:
    async def scenario(operator: ClusterOperator, cluster: FakeCluster) -> None:
        restart = await draining(operator, for_restart=True)
        operator.set_mixes({"d": MIXED})
        cluster.drains[0].set_result(0)
        await restart
        assert (cluster.reopened, cluster.set, is_drained(operator)) == ([], [{"d": MIXED}], False)
        restart = await draining(operator, for_restart=True)
        cluster.drains[1].set_result(0)
        await restart
        assert cluster.reopened == [MIXED]

    operating(scenario)


def test_a_slot_that_was_given_back_meanwhile_is_not_touched() -> None:
    async def scenario(operator: ClusterOperator, cluster: FakeCluster) -> None:
        restart = await draining(operator, for_restart=True)
        operator.lift_mixes(["d"])
        cluster.drains[0].set_result(0)
        await restart
        assert (cluster.reopened, cluster.set, is_drained(operator)) == ([], [{"d": DECODE}], False)

    operating(scenario)
