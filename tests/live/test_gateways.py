"""A gateway that is not beside the head: it joins with the token, hears its tokens from the nodes, and goes alone."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.api.v1.post_pb2 import Envelope
from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.keys import AccessSettings, ServiceClass
from cluster.gateway.limits import Limits, ServedModel
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from cluster.live.gateway_facts import ClusterView, GatewayFacts, ModelFacts
from cluster.live.gateways import News
from cluster.live.handshake import ClusterToken
from cluster.live.joined import JoinedCluster
from cluster.live.joining import joining, knock, mint_gateway_id
from cluster.live.local import LocalLauncher
from cluster.live.token_file import read_token
from core.errors import ConfigError, Unavailable
from core.events import GatewayEvent, RequestArrived, TokensEmitted
from core.goodput import Outcome
from core.ids import GatewayId, NodeId, RequestId
from core.timers import Timers
from tests.live.aviary import Aviary, Door, parrots
from tests.live.posts import until

pytestmark = pytest.mark.slow

QUICK = Timers(heartbeat_s=0.2, progress_s=0.5, claim_s=0.5, suspect_s=1.0, dead_s=1.5)
MODEL = ModelFacts(ServedModel("parrot", 100_000, 64, 4), "/models/parrot", "ab", "safetensors", "float32", "none")
ACCESS = AccessSettings(classes=(ServiceClass("chat"),))


class Perch(Door):
    """The smallest gateway in a process of its own, but for the process: it knows the head by its address only."""

    def __init__(self, joined: JoinedCluster) -> None:
        super().__init__()
        self.joined = joined
        self.heard: list[tuple[str, GatewayEvent]] = []
        self.lost: list[str] = []
        joined.handle = self.handle
        joined.on_joined = self.take_id
        joined.on_lost = self.lost.append
        self.cluster = joined  # type: ignore[assignment]
        on_letters = joined.on_letters

        def listen(peer: str, letters: list[tuple[str, GatewayEvent]]) -> None:
            self.heard += [(peer, event) for _, event in letters]
            on_letters(peer, letters)  # type: ignore[arg-type]

        joined.on_letters = listen  # type: ignore[method-assign, assignment]

    def take_id(self, gateway: GatewayId) -> None:
        self.streams.gateway = gateway

    async def ask(self, name: str, *words: int) -> Outcome:
        self.open(name, *words)
        await until(lambda: name in self.ends)
        return self.ends[name].outcome


class Town:
    """A cluster of parrots whose head lets gateways in. `view` is what they are shown."""

    def __init__(self, folder: Path, timers: Timers = QUICK, port: int = 0) -> None:
        self.token_file = folder / "token"
        self.view = ClusterView(controller="advise")
        self.facts = GatewayFacts(MODEL, Limits(max_streams=7), ACCESS, timers)
        config = LiveConfig(
            NodeSettings(Path(__file__).parent),
            slots_of(1, 1, 0, 256, 8),
            timers=timers,
            token_file=self.token_file,
            port=port,
        )
        self.aviary: Aviary = parrots(config.slots, LocalLauncher(program="tests.live.parrot"), timers, config)
        self.aviary.cluster.admit_gateways(News(lambda: self.facts, lambda: self.view))

    @property
    def address(self) -> str:
        return self.aviary.cluster.address

    @property
    def token(self) -> ClusterToken:
        return read_token(self.token_file)

    async def perch(self) -> Perch:
        known = await knock(self.address, self.token, mint_gateway_id())
        perch = Perch(JoinedCluster(self.address, self.token, known.facts))
        await perch.joined.start()
        return perch


@asynccontextmanager
async def town(folder: Path, timers: Timers = QUICK) -> AsyncIterator[Town]:
    """A started one; afterwards, nothing of it is left."""
    place = Town(folder, timers)
    await place.aviary.cluster.start()
    try:
        yield place
    finally:
        await place.aviary.cluster.stop()


def test_two_gateways_serve_one_cluster_and_each_hears_its_tokens_from_the_nodes(tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            perch = await place.perch()
            try:
                for i in range(10):
                    assert await perch.ask(f"far-{i}", 5, 6, i) is Outcome.FINISHED
                    assert await place.aviary.ask(f"near-{i}", 7, 8, i) is Outcome.FINISHED
                assert perch.tokens == {f"far-{i}": [5, 6, i] for i in range(10)}
                assert place.aviary.door.tokens == {f"near-{i}": [7, 8, i] for i in range(10)}
                speakers = {peer for peer, event in perch.heard if isinstance(event, TokensEmitted)}
                assert speakers == {place.aviary.nodes["decode-0"].node}
                assert place.aviary.cluster.gateways == (perch.joined.gateway,)
            finally:
                await perch.joined.stop()

    asyncio.run(walk())


def test_what_a_gateway_must_know_is_told_by_the_head(tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            perch = await place.perch()
            changed: list[AccessSettings] = []
            perch.joined.on_access = changed.append
            try:
                assert perch.joined.facts == place.facts
                assert perch.joined.view == place.view
                place.view = replace(place.view, state=ClusterState((), (("node_deaths", 3),)))
                await until(lambda: perch.joined.view == place.view)
                place.aviary.cluster.tell_access(AccessSettings())
                await until(lambda: changed == [AccessSettings()])
            finally:
                await perch.joined.stop()

    asyncio.run(walk())


def test_nodes_that_come_later_find_the_gateways_that_are_there(tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            perch = await place.perch()
            try:
                os.kill(place.aviary.pid("decode-0"), signal.SIGKILL)
                await until(lambda: len(place.aviary.scheduler.nodes) == 1)
                await until(lambda: len(place.aviary.scheduler.nodes) == 2)
                assert await perch.ask("after", 1, 2, 3) is Outcome.FINISHED
                assert perch.tokens["after"] == [1, 2, 3]
            finally:
                await perch.joined.stop()

    asyncio.run(walk())


def test_a_gateway_that_is_gone_is_lost_for_the_scheduler_and_another_one_serves_on(tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            gone, stays = await place.perch(), await place.perch()
            try:
                assert len(set(place.aviary.cluster.gateways)) == 2
                await vanish(gone.joined)
                await until(lambda: place.aviary.cluster.gateways == (stays.joined.gateway,))
                await until(lambda: bool(place.aviary.scheduler.lost_gateways))
                ((gateway, why),) = place.aviary.scheduler.lost_gateways
                assert gateway == gone.streams.gateway
                assert "severed" in why
                assert await stays.ask("on", 4, 5) is Outcome.FINISHED
                assert await place.aviary.ask("and-on", 6) is Outcome.FINISHED
            finally:
                await stays.joined.stop()

    asyncio.run(walk())


async def vanish(joined: JoinedCluster) -> None:
    """As its process would: without a word."""
    assert joined._post is not None
    for task in joined._tasks:
        task.cancel()
    joined._tasks = []
    await joined._post.stop()


@pytest.mark.parametrize("turns", [0, 10], ids=["before it has run", "when it runs"])
def test_a_gateway_that_leaves_is_gone_at_once_and_twice_is_fine(turns: int, tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            perch = await place.perch()
            for _ in range(turns):
                await asyncio.sleep(0)
            await perch.joined.stop()
            assert place.aviary.cluster.gateways == ()
            await perch.joined.stop()
            await until(lambda: place.aviary.scheduler.lost_gateways == [(perch.streams.gateway, "it leaves")])

    asyncio.run(walk())


def test_a_gateway_that_loses_its_head_is_told_and_joins_the_next_one_under_another_id(tmp_path: Path) -> None:
    async def walk() -> None:
        first = Town(tmp_path)
        await first.aviary.cluster.start()
        port = int(first.address.rpartition(":")[2])
        perch = await first.perch()
        was = perch.joined.gateway
        try:
            await first.aviary.cluster.stop()
            await until(lambda: bool(perch.lost))
            assert perch.joined.view == ClusterView(), "nobody knows"
            second = Town(tmp_path, port=port)
            await second.aviary.cluster.start()
            try:
                await until(lambda: perch.streams.gateway != was)
                assert second.aviary.cluster.gateways == (perch.joined.gateway,)
                assert await perch.ask("again", 8, 9) is Outcome.FINISHED
            finally:
                await second.aviary.cluster.stop()
        finally:
            await perch.joined.stop()

    asyncio.run(walk())


def test_a_cluster_that_serves_another_model_than_before_is_not_joined_again(tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            perch = await place.perch()
            try:
                place.facts = replace(place.facts, model=replace(MODEL, tokenizer="cd"))
                place.aviary.cluster._head.remove_gateway(perch.joined.gateway, "a test")
                assert "another model" in await perch.joined.broken()
            finally:
                await perch.joined.stop()

    asyncio.run(walk())


def test_who_does_not_hold_the_token_is_told_nothing_and_is_no_member(tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            with pytest.raises(ConfigError, match="another cluster"):
                await knock(place.address, ClusterToken.mint(), mint_gateway_id())
            with pytest.raises(ConfigError, match="only gateways join here"):
                await knock(place.address, place.token, GatewayId("decode-0@12345678"))
            assert place.aviary.cluster.gateways == ()

    asyncio.run(walk())


def test_an_id_that_is_taken_and_an_address_where_nobody_is_are_said_so(tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            perch = await place.perch()
            try:
                with pytest.raises(Unavailable, match=f"there is a {perch.joined.gateway} already"):
                    await knock(place.address, place.token, perch.joined.gateway, nowhere)
            finally:
                await perch.joined.stop()
        with pytest.raises(Unavailable, match="no head answers"):
            await knock("127.0.0.1:9", ClusterToken.mint(), mint_gateway_id())

    asyncio.run(walk())


async def nowhere(_: object) -> Envelope:
    return joining("127.0.0.1:9")


def test_a_head_without_a_token_file_takes_no_gateways(tmp_path: Path) -> None:
    async def walk() -> None:
        aviary = parrots(slots_of(1, 1, 0, 256, 8), LocalLauncher(program="tests.live.parrot"))
        await aviary.cluster.start()
        try:
            assert aviary.cluster.address == ""
            assert aviary.cluster._place is not None
            with pytest.raises(ConfigError, match="no head that takes gateways"):
                await knock(aviary.cluster._place.address, aviary.cluster._token, mint_gateway_id())
        finally:
            await aviary.cluster.stop()

    asyncio.run(walk())


def test_a_gateway_speaks_of_its_own_requests_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from core.commands import Tell
    from core.events import NodeLost
    from core.ids import SCHEDULER
    from tests.live.parrot import question

    async def walk() -> None:
        async with town(tmp_path) as place:
            perch = await place.perch()
            try:
                head = place.aviary.cluster._head
                perch.joined.tell(Tell(SCHEDULER, NodeLost(NodeId("decode-0"), "a lie")))
                perch.joined.tell(Tell(SCHEDULER, RequestArrived(question("r", (1,)), GatewayId("gateway-00000000"))))
                await until(lambda: head.num_foreign == 2)
                assert place.aviary.scheduler.lost == []
                assert RequestId("r") not in place.aviary.scheduler.requests
            finally:
                await perch.joined.stop()

    with caplog.at_level("ERROR"):
        asyncio.run(walk())


def test_time_passes_for_a_gateway_without_its_head(tmp_path: Path) -> None:
    async def walk() -> None:
        async with town(tmp_path) as place:
            perch = await place.perch()
            ticks: list[float] = []
            perch.joined.handle = lambda event, now: ticks.append(now)
            try:
                place.aviary.cluster._head.remove_gateway(perch.joined.gateway, "a test")
                await until(lambda: bool(perch.lost))
                before = len(ticks)
                await until(lambda: len(ticks) > before)
                assert ticks[-1] <= time.monotonic()
            finally:
                await perch.joined.stop()

    asyncio.run(walk())
