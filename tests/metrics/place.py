"""A gateway without nodes under observation, with the routes that show it, for one asyncio loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import httpx
from prometheus_client.parser import text_string_to_metric_families

from cluster.gateway.access import Access
from cluster.gateway.cluster_routes import cluster_routes
from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.dashboard.routes import OPEN_PATHS, dashboard_routes
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys import AccessSettings
from cluster.gateway.ledger import GAP_BOUNDS_S, CallFacts, RequestLedger
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.openai.config import HttpConfig
from cluster.gateway.openai.door import Door
from cluster.gateway.openai.server import HttpServer
from cluster.gateway.operator import DecisionFeed, SlotView
from cluster.gateway.streams import Streams
from cluster.gateway.tokenizer import Tokenizer
from cluster.metrics.config import ObservationConfig
from cluster.metrics.exposition import Exposition
from cluster.metrics.model_work import ModelWork
from cluster.metrics.observation import Observation
from cluster.metrics.routes import metrics_routes
from cluster.metrics.routes_seen import RequestNodes
from core.events import FinishReason
from core.goodput import Outcome
from core.ids import GatewayId, RequestId, node_name
from core.mix import Mix
from core.request import SLO
from core.stats import Timing
from tests.gateway.fake_cluster import MAX_MODEL_LEN, VOCAB_SIZE, FakeCluster, tiny_tokenizer, until

TIMING = Timing(0.01, 0.02, 0.03, 0.0, 0.01, 0.0, 0.4, num_cached_tokens=3)
NODES = RequestNodes("p", "d")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def ended(**fields: object) -> RequestLedger:
    """The ledger of a request that met its targets: 11 tokens in 0.5 s, the first after 0.1 s."""
    gaps = [0] * (len(GAP_BOUNDS_S) + 1)
    gaps[GAP_BOUNDS_S.index(0.05)] = 10
    met = RequestLedger(
        id=RequestId("r1"),
        outcome=Outcome.FINISHED,
        code="",
        num_prompt_tokens=7,
        num_tokens=11,
        num_attempts=1,
        timing=TIMING,
        wall_s=0.5,
        ttft_s=0.1,
        last_token_s=0.5,
        num_cached_tokens=3,
        slo=SLO(0.2, 0.05),
        facts=CallFacts("standard", "mine"),
        finish=FinishReason.LENGTH,
        gaps=tuple(gaps),
    )
    return replace(met, **fields)  # type: ignore[arg-type]


class FakeOperator:
    """The operator of a fake cluster: slots are the nodes it began with."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.feed = DecisionFeed()
        self.num_deaths = 0
        self._begun = cluster.state.nodes

    def shown(self) -> ClusterState:
        return replace(self.cluster.state, decisions=self.feed.recent, decided=self.feed.counts)

    def slots(self) -> tuple[SlotView, ...]:
        there = {node.id for node in self.cluster.state.nodes}
        return tuple(
            SlotView(
                node_name(node.id),
                "running" if node.id in there else "loading",
                node.mix,
                node.id if node.id in there else None,
                self.num_deaths,
                False,
                False,
            )
            for node in self._begun
        )

    def controller(self) -> str:
        return "on"

    def set_mixes(self, mixes: Mapping[str, Mix]) -> None:
        raise AssertionError("nobody who looks changes anything")

    def lift_mixes(self, slots: Iterable[str]) -> None:
        raise AssertionError("nobody who looks changes anything")

    async def drain(self, slot: str) -> int:
        raise AssertionError("nobody who looks changes anything")

    def watch(self, num_past: int) -> AsyncIterator[tuple[int, object]]:  # type: ignore[override]
        return self.feed.watch(num_past)


@dataclass(frozen=True, slots=True)
class Place:
    """Everything a scenario needs."""

    gateway: Gateway
    cluster: FakeCluster
    operator: FakeOperator
    observation: Observation
    client: httpx.AsyncClient
    url: str

    async def samples(self) -> Samples:
        """What /metrics says now: by name and labels but the model's."""
        answer = await self.client.get("/metrics")
        assert answer.status_code == 200, answer.text
        return samples_of(answer.text)

    async def complete(self, **fields: object) -> httpx.Response:
        """One completion of the fake cluster."""
        body = {"model": "tiny", "prompt": "the quick brown fox", "max_tokens": 5, **fields}
        return await self.client.post("/v1/completions", json=body)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scenario may want otherwise."""

    config: ObservationConfig = field(default_factory=ObservationConfig)
    access: AccessSettings = field(default_factory=AccessSettings)
    limits: Limits = field(default_factory=Limits)
    model: ModelWork | None = None


def observe(scenario: Callable[[Place], Awaitable[None]], setting: Setting = Setting()) -> None:
    """Run a scenario; at its end nothing is open any more."""

    async def run() -> None:
        async with observed(setting) as place:
            await scenario(place)
            await until(place.gateway.streams.is_idle)

    asyncio.run(asyncio.wait_for(run(), 60))


@contextlib.asynccontextmanager
async def observed(setting: Setting) -> AsyncIterator[Place]:
    """A served gateway for the length of a block. Samples are taken by the test, not by the clock."""
    cluster = FakeCluster()
    model = ServedModel("tiny", VOCAB_SIZE, MAX_MODEL_LEN, 16)
    gateway = Gateway(
        model, Tokenizer(tiny_tokenizer(), None), Streams(GatewayId("gateway")), setting.limits, cluster.tell
    )
    cluster.gateway = gateway
    gateway.access = Access(setting.access)
    operator = FakeOperator(cluster)
    observation = Observation(gateway, operator, setting.config, setting.model, lambda request: NODES)  # type: ignore[arg-type]
    routers = (
        metrics_routes(Exposition(observation), gateway.access),
        dashboard_routes(observation),
        cluster_routes(observation),
    )
    server = HttpServer(Door(gateway, operator.shown, HttpConfig(port=0)), None, routers, OPEN_PATHS)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as client:
            yield Place(gateway, cluster, operator, observation, client, server.url)
    finally:
        await cluster.close()
        await server.stop()
        await observation.stop()


def samples_of(text: str) -> Samples:
    """A scrape's samples."""
    return {
        (sample.name, frozenset((name, value) for name, value in sample.labels.items() if name != "model_name")): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """One sample; `_class` stands for the label that is a word of Python."""
    wanted = frozenset((key.lstrip("_"), each) for key, each in labels.items())
    return samples[name, wanted]
