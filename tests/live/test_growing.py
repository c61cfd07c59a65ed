"""A live cluster that gets nodes and gives them up while it serves."""

import asyncio

import pytest

from cluster.live.config import NodeSlot
from core.errors import ConfigError
from core.goodput import Outcome
from core.mix import mix_of
from tests.live.aviary import exists
from tests.live.posts import until
from tests.live.test_local_cluster import running

pytestmark = pytest.mark.slow

MORE = NodeSlot("decode-1", mix_of("decode", 256, 8))


def test_a_node_that_is_added_joins_and_one_that_is_removed_leaves_nothing_behind() -> None:
    async def walk() -> None:
        async with running() as aviary:
            aviary.cluster.add_node(MORE)
            await until(lambda: "decode-1" in aviary.nodes)
            assert await aviary.ask("with three", 1, 2) is Outcome.FINISHED
            pid = aviary.pid("decode-1")
            await aviary.cluster.remove_node("decode-1")
            assert not exists(pid)
            assert set(aviary.nodes) == {"prefill-0", "decode-0"}
            assert {slot.name for slot in aviary.cluster.state().slots} == {"prefill-0", "decode-0"}
            assert await aviary.ask("with two", 3, 4) is Outcome.FINISHED
            aviary.cluster.add_node(MORE)
            await until(lambda: "decode-1" in aviary.nodes)

    asyncio.run(walk())


def test_a_slot_can_be_given_up_while_its_node_starts() -> None:
    async def walk() -> None:
        async with running() as aviary:
            aviary.cluster.add_node(MORE)
            await asyncio.sleep(0)
            await aviary.cluster.remove_node("decode-1")
            assert set(aviary.nodes) == {"prefill-0", "decode-0"}
            assert await aviary.ask("after", 3, 4) is Outcome.FINISHED

    asyncio.run(walk())


def test_a_node_that_cannot_start_is_tried_again_and_does_not_end_the_cluster() -> None:
    async def walk() -> None:
        async with running() as aviary:
            aviary.cluster.add_node(NodeSlot("dying-0", mix_of("mixed", 256, 8)))
            await until(lambda: {s.name: s.num_deaths for s in aviary.cluster.state().slots}["dying-0"] >= 2)
            assert await aviary.ask("meanwhile", 5) is Outcome.FINISHED
            await aviary.cluster.remove_node("dying-0")
            assert "dying-0" not in {slot.name for slot in aviary.cluster.state().slots}

    asyncio.run(walk())


def test_names_are_checked_when_nodes_are_added_and_removed() -> None:
    async def walk() -> None:
        async with running() as aviary:
            with pytest.raises(ConfigError, match="decode-0"):
                aviary.cluster.add_node(NodeSlot("decode-0", MORE.mix))
            with pytest.raises(ConfigError, match="nobody"):
                await aviary.cluster.remove_node("nobody")

    asyncio.run(walk())
