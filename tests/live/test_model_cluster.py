"""Whole clusters of real processes: real machines, a tiny model with random weights, and the tokens of one executor."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from cluster.live.cluster import LiveCluster
from cluster.live.config import LiveConfig, NodeSettings, NodeSlot, slots_of
from cluster.live.launcher import Launcher
from core.errors import ConfigError
from core.goodput import Outcome
from core.ids import AttemptId, RequestId
from core.kv import SlabShape, block_keys
from core.mix import mix_of
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.stats import NodeStats
from core.step import RowJoin, StepPlan
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, read_model_info
from scheduler.config import SchedulerConfig
from scheduler.policies.least_loaded import LeastLoaded
from scheduler.scheduler import Scheduler
from tests.live.aviary import Door, exists
from tests.live.posts import until

pytestmark = pytest.mark.slow

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
PROMPT = tuple(range(3, 90))
NUM_TOKENS, NUM_LONG = 48, 300
MOST_TURNS = 12
"""Where a machine is so busy that answers are complete before a drain begins, another one is tried."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> NodeSettings:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return NodeSettings(folder, load_format="dummy", num_kv_blocks=64)


@pytest.fixture(scope="module")
def expected(settings: NodeSettings) -> list[int]:
    """What one executor says to the prompt, without any cluster."""
    info = read_model_info(settings.model, LoadFormat.DUMMY)
    shape = SlabShape(info.kv_layout(settings.block_size, settings.dtype), 16)
    config = ExecutorConfig(settings.model, load_format=LoadFormat.DUMMY)
    executor = load_executor(config, bytearray(shape.total_bytes), shape)
    attempt, blocks = AttemptId("a#0"), tuple(range(16))
    join = RowJoin(attempt, pack_tokens(PROMPT), 0, sampling(), blocks, blocks, len(PROMPT))
    tokens = [*executor.run(StepPlan(1, (attempt,), (len(PROMPT),), joined=(join,))).token_ids]
    while len(tokens) < NUM_TOKENS:
        tokens += executor.run(StepPlan(1 + len(tokens), (attempt,), (1,))).token_ids
    executor.close()
    return tokens


def sampling(num_tokens: int = NUM_TOKENS) -> SamplingParams:
    return SamplingParams(num_tokens, temperature=0.0, ignore_eos=True)


class Running:
    """A started cluster with its door."""

    def __init__(self, cluster: LiveCluster, scheduler: Scheduler, door: Door) -> None:
        self.cluster = cluster
        self.scheduler = scheduler
        self.door = door

    def open(self, name: str, num_tokens: int = NUM_TOKENS) -> None:
        packed = pack_tokens(PROMPT)
        prompt = Prompt(len(PROMPT), block_keys(packed, 16))
        request = Request(RequestId(name), prompt, packed, sampling(num_tokens))
        self.door.carry(self.door.streams.open(request, time.monotonic()))

    async def tokens(self, name: str) -> list[int]:
        await until(lambda: name in self.door.ends)
        assert self.door.ends[name].outcome is Outcome.FINISHED, self.door.ends[name].error
        return self.door.tokens[name]

    def roles(self) -> dict[str, str]:
        return {node.slot: node.mix.role for node in self.cluster.state().nodes}

    def stats(self, slot: str) -> NodeStats:
        """What the node of a slot has said of itself last."""
        (stats,) = [node.stats for node in self.cluster.state().nodes if node.slot == slot]
        assert stats is not None
        return stats

    def pids(self) -> dict[str, int]:
        return {node.slot: node.pid for node in self.cluster.state().nodes}


@asynccontextmanager
async def running(
    settings: NodeSettings, slots: tuple[NodeSlot, ...], launcher: str = "local", by: Launcher | None = None
) -> AsyncIterator[Running]:
    """A cluster that serves; in the end all its machines are idle and none of its processes is left.

    `by`: what starts its nodes, in the place of the launcher of that name.
    """
    scheduler, door = Scheduler(SchedulerConfig(), LeastLoaded()), Door()
    cluster = LiveCluster(LiveConfig(settings, slots, launcher), scheduler, launcher=by)
    door.join(cluster)
    await cluster.start()
    here = Running(cluster, scheduler, door)
    pids = set(here.pids().values())
    try:
        yield here
        await until(lambda: scheduler.is_idle() and door.streams.is_idle())
        await until(lambda: all(is_idle(node.stats) for node in cluster.state().nodes))
        pids |= set(here.pids().values())
    finally:
        await cluster.stop()
    await until(lambda: not any(exists(pid) for pid in pids))


def is_idle(stats: object) -> bool:
    """Whether a node's last report shows every block free or cached."""
    blocks = getattr(stats, "blocks", None)
    return blocks is not None and blocks.free + blocks.cached == blocks.capacity


@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
def test_two_processes_say_what_one_executor_says(
    settings: NodeSettings, expected: list[int], max_steps_in_flight: int
) -> None:
    async def walk() -> None:
        slots = slots_of(1, 1, 0, 32, 8)
        async with running(replace(settings, max_steps_in_flight=max_steps_in_flight), slots) as here:
            for i in range(4):
                here.open(f"r{i}")
            for i in range(4):
                assert await here.tokens(f"r{i}") == expected
            await until(lambda: sum(node.num_bytes for node in here.cluster.state().nodes) > 0)

    asyncio.run(walk())


@pytest.mark.parametrize("slot", ["prefill-0", "decode-0"])
def test_a_killed_node_costs_no_request_and_changes_no_token(
    settings: NodeSettings, expected: list[int], slot: str
) -> None:
    async def walk() -> None:
        async with running(settings, slots_of(1, 1, 0, 32, 8)) as here:
            for i in range(6):
                here.open(f"r{i}")
            await until(lambda: len(here.door.tokens) > 0)
            killed = here.pids()[slot]
            os.kill(killed, signal.SIGKILL)
            for i in range(6):
                assert await here.tokens(f"r{i}") == expected
            await until(lambda: here.pids().get(slot, killed) != killed)
            here.open("after")
            assert await here.tokens("after") == expected

    asyncio.run(walk())


def test_mixes_can_be_set_while_requests_run_and_outlive_an_incarnation(
    settings: NodeSettings, expected: list[int]
) -> None:
    async def walk() -> None:
        async with running(settings, slots_of(1, 1, 0, 32, 8)) as here:
            here.open("before")
            here.cluster.set_mixes({"prefill-0": mix_of("decode", 32, 8), "decode-0": mix_of("prefill", 32, 8)})
            here.open("after")
            assert await here.tokens("before") == expected
            assert await here.tokens("after") == expected
            await until(lambda: here.roles()["prefill-0"] == "decode")
            killed = here.pids()["prefill-0"]
            os.kill(killed, signal.SIGKILL)
            await until(lambda: here.pids().get("prefill-0", killed) != killed)
            assert here.roles()["prefill-0"] == "decode", "a new incarnation starts with the mix that was set"

    asyncio.run(walk())


def test_a_node_that_drains_hands_its_streams_on_and_no_token_changes(
    settings: NodeSettings, expected: list[int]
) -> None:
    async def walk() -> None:
        async with running(replace(settings, num_kv_blocks=160), slots_of(1, 2, 0, 32, 8)) as here:
            here.open("undisturbed", NUM_LONG)
            undisturbed = await here.tokens("undisturbed")
            assert undisturbed[:NUM_TOKENS] == expected
            for turn in range(MOST_TURNS):
                names = [f"r{turn}.{i}" for i in range(5)]
                for name in names:
                    here.open(name, NUM_LONG)
                await until(lambda told=names: all(name in here.door.tokens for name in told))
                assert await here.cluster.drain("decode-0") == 0
                assert here.roles()["decode-0"] == "closed"
                for name in names:
                    assert await here.tokens(name) == undisturbed
                    assert here.door.ends[name].num_attempts == 1
                if here.stats("decode-0").num_migrated > 0:
                    break  # a report later than the move: a row that ends first is asked to move in vain
                here.cluster.set_mixes({"decode-0": mix_of("decode", 32, 8)})
            with pytest.raises(ConfigError, match="'nobody' is not known"):
                await here.cluster.drain("nobody")
            await until(lambda: here.stats("decode-0").num_migrated > 0 and is_idle(here.stats("decode-0")))
            here.open("after")
            assert await here.tokens("after") == expected

    asyncio.run(walk())
