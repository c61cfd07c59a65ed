"""A head and nodes as real processes, with machines so small that only the shells can be wrong."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.live import supervisor
from cluster.live.config import NodeSlot, slots_of
from cluster.live.local import LocalLauncher
from core.errors import ConfigError, NodeLost
from core.events import AttemptEnd
from core.goodput import Outcome
from core.mix import mix_of
from core.timers import Timers
from tests.live.aviary import Aviary, exists, parrots
from tests.live.posts import until

pytestmark = pytest.mark.slow

PAIR = slots_of(1, 1, 0, 256, 8)
PARROT = "tests.live.parrot"


@asynccontextmanager
async def running(slots: tuple[NodeSlot, ...] = PAIR, timers: Timers = Timers()) -> AsyncIterator[Aviary]:  # noqa: B008
    """A started cluster; afterwards, none of its processes is left."""
    aviary = parrots(slots, LocalLauncher(program=PARROT), timers)
    await aviary.cluster.start()
    pids = [node.pid for node in aviary.cluster.state().nodes]
    try:
        yield aviary
        pids += [node.pid for node in aviary.cluster.state().nodes]
    finally:
        await aviary.cluster.stop()
    assert [pid for pid in pids if exists(pid)] == []


def test_a_request_walks_through_two_processes_and_its_kv_moves() -> None:
    async def walk() -> None:
        async with running() as aviary:
            for i in range(20):
                assert await aviary.ask(f"r{i}", 5, 6, 7, i) is Outcome.FINISHED
                assert aviary.door.tokens[f"r{i}"] == [5, 6, 7, i]
            await until(lambda: sum(node.num_fetches for node in aviary.cluster.state().nodes) == 20)
            prefill, decode = sorted(aviary.cluster.state().nodes, key=lambda node: node.slot, reverse=True)
            assert len({prefill.pid, decode.pid, os.getpid()}) == 3
            assert decode.num_bytes > 0 == prefill.num_bytes
            assert set(aviary.scheduler.finished) == {(decode.node, AttemptEnd.FINISHED)}

    asyncio.run(walk())


@pytest.mark.parametrize("slot", ["prefill-0", "decode-0"])
def test_a_killed_node_is_lost_at_once_and_a_new_incarnation_takes_its_place(slot: str) -> None:
    async def walk() -> None:
        async with running() as aviary:
            assert await aviary.ask("before", 1, 2) is Outcome.FINISHED
            before = {slot: node.node for slot, node in aviary.nodes.items()}
            os.kill(aviary.pid(slot), signal.SIGKILL)
            await until(lambda: len(aviary.scheduler.nodes) == 1)
            assert aviary.scheduler.lost == [(before[slot], "killed by signal 9")]
            await until(lambda: len(aviary.scheduler.nodes) == 2)
            after = {slot: node.node for slot, node in aviary.nodes.items()}
            assert after[slot] != before[slot]
            assert {name for name in after if after[name] == before[name]} == before.keys() - {slot}
            assert await aviary.ask("after", 3, 4) is Outcome.FINISHED

    asyncio.run(walk())


def test_a_broken_invariant_stops_the_node_and_its_last_events_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def walk() -> None:
        async with running() as aviary:
            aviary.door.open("unlucky", 13, 99_731)
            await until(lambda: bool(aviary.scheduler.lost))
            assert "status 70" in aviary.scheduler.lost[0][1]
            aviary.door.cancel("unlucky")

    with caplog.at_level("WARNING", "penstock"):
        asyncio.run(walk())
    assert "thirteen" in caplog.text
    assert "Submitted(attempt='unlucky#0'" in caplog.text
    assert "99731" not in caplog.text


def test_a_failed_step_fails_its_attempt_and_nothing_else() -> None:
    async def walk() -> None:
        async with running() as aviary:
            assert await aviary.ask("fails", 14) is Outcome.FAILED
            assert await aviary.ask("works", 15) is Outcome.FINISHED
            assert not aviary.scheduler.lost

    asyncio.run(walk())


def test_a_frozen_node_is_lost_for_good_even_if_it_comes_back() -> None:
    quick = Timers(heartbeat_s=0.2, progress_s=0.5, claim_s=0.5, suspect_s=1.0, dead_s=1.5)

    async def walk() -> None:
        async with running(timers=quick) as aviary:
            frozen = aviary.pid("decode-0")
            os.kill(frozen, signal.SIGSTOP)
            await until(lambda: bool(aviary.scheduler.lost))
            assert "severed" in aviary.scheduler.lost[0][1]
            await until(lambda: len(aviary.scheduler.nodes) == 2)
            assert aviary.pid("decode-0") != frozen
            assert not exists(frozen)
            assert await aviary.ask("after", 3, 4) is Outcome.FINISHED

    asyncio.run(walk())


def test_what_is_wrong_with_the_configuration_is_told_at_start_and_nothing_stays() -> None:
    async def walk() -> None:
        mix = mix_of("mixed", 256, 8)
        slots = (NodeSlot("good-0", mix), NodeSlot("bad-0", mix))
        with pytest.raises(ConfigError, match="bad-0: a bad bird"):
            await parrots(slots, LocalLauncher(program=PARROT)).cluster.start()

    asyncio.run(walk())


def test_a_node_that_dies_while_it_starts_fails_the_start() -> None:
    async def walk() -> None:
        slots = (NodeSlot("dying-0", mix_of("mixed", 256, 8)),)
        with pytest.raises(NodeLost, match="dying-0 did not start: exited with status 3"):
            await parrots(slots, LocalLauncher(program=PARROT)).cluster.start()

    asyncio.run(walk())


def test_neither_the_arguments_nor_the_environment_of_a_node_hold_the_cluster_token() -> None:
    async def walk() -> None:
        async with running() as aviary:
            secret = aviary.cluster._token.secret
            for node in aviary.cluster.state().nodes:
                for file in ("cmdline", "environ"):
                    text = Path(f"/proc/{node.pid}/{file}").read_bytes()
                    assert secret.hex().encode() not in text
                    assert secret not in text

    asyncio.run(walk())


def test_a_slot_whose_nodes_die_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.001)

    async def walk() -> None:
        async with running() as aviary:
            for deaths in range(1, supervisor.MAX_DEATHS + 1):
                os.kill(aviary.pid("decode-0"), signal.SIGKILL)
                expected = 1 if deaths == supervisor.MAX_DEATHS else 2
                await until(
                    lambda n=deaths, e=expected: (len(aviary.scheduler.lost), len(aviary.scheduler.nodes)) == (n, e)
                )
            await until(lambda: "given up" in {slot.phase for slot in aviary.cluster.state().slots})
            assert await aviary.ask("alone", 1, 2) is Outcome.FAILED

    asyncio.run(walk())


PROGRAM = """
import asyncio
from tests.live.test_local_cluster import running

async def main():
    async with running() as aviary:
        print(*(node.pid for node in aviary.cluster.state().nodes), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_nodes_go_when_their_head_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as head:
        assert head.stdout is not None
        pids = [int(word) for word in head.stdout.readline().split()]
        assert len(pids) == 2
        assert all(exists(pid) for pid in pids)
        head.kill()
    asyncio.run(until(lambda: not any(exists(pid) for pid in pids)))
