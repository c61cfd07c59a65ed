"""The real HTTP server over a real gateway, with a cluster without nodes behind it, for one asyncio loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import httpx
from fastapi import APIRouter

from cluster.gateway.access import Access
from cluster.gateway.chat_template import ChatTemplate
from cluster.gateway.formats import Formats
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys import AccessSettings
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.openai.config import HttpConfig
from cluster.gateway.openai.door import Door, NodesOf
from cluster.gateway.openai.server import HttpServer
from cluster.gateway.streams import Streams
from cluster.gateway.tls import TLSFiles
from cluster.gateway.tokenizer import Tokenizer
from core.ids import GatewayId
from tests.gateway.fake_cluster import MAX_MODEL_LEN, VOCAB_SIZE, VOCABULARY, FakeCluster, tiny_tokenizer, until

LAST_MESSAGE = "{% if tools %}{# <tool_call> #}{% endif %}{{ messages[-1]['content'] }}"
"""A template that takes tools, in Hermes' form; the fake nodes then answer with what the last message says."""

ANY_PORT = HttpConfig(port=0)


@dataclass(frozen=True, slots=True)
class Place:
    """Everything a scenario needs."""

    gateway: Gateway
    cluster: FakeCluster
    server: HttpServer
    client: httpx.AsyncClient
    tokenizer: Tokenizer

    @property
    def url(self) -> str:
        return self.server.url


Scenario = Callable[[Place], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scenario may want otherwise."""

    limits: Limits = Limits()  # noqa: RUF009 - frozen
    config: HttpConfig = ANY_PORT
    template: str | None = LAST_MESSAGE
    max_model_len: int = MAX_MODEL_LEN
    access: AccessSettings = AccessSettings()  # noqa: RUF009 - frozen
    tls: TLSFiles | None = None
    routers: tuple[APIRouter, ...] = ()
    nodes_of: NodesOf | None = None
    seconds: float = 60


USUAL = Setting()


def serve(scenario: Scenario, setting: Setting = USUAL) -> None:
    """Run a scenario against a new server; at its end nothing is open any more."""
    asyncio.run(asyncio.wait_for(_serve(scenario, setting), setting.seconds))


async def _serve(scenario: Scenario, setting: Setting) -> None:
    async with running(setting) as place:
        await scenario(place)
        await until(place.gateway.streams.is_idle)
    place.gateway.streams.check()


@contextlib.asynccontextmanager
async def running(setting: Setting = USUAL) -> AsyncIterator[Place]:
    """A server for the length of a block, in the loop that runs."""
    cluster = FakeCluster()
    template = None if setting.template is None else ChatTemplate(setting.template, {})
    tokenizer = Tokenizer(tiny_tokenizer(), template)
    model = ServedModel("tiny", VOCAB_SIZE, setting.max_model_len, 16)
    gateway = Gateway(model, tokenizer, Streams(GatewayId("gateway")), setting.limits, cluster.tell)
    cluster.gateway = gateway
    gateway.access = Access(setting.access)
    gateway.formats = Formats(VOCABULARY)
    server = HttpServer(
        Door(gateway, lambda: cluster.state, setting.config, setting.nodes_of), setting.tls, setting.routers
    )
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as client:
            yield Place(gateway, cluster, server, client, tokenizer)
    finally:
        await cluster.close()
        await server.stop()
        gateway.close()


@contextlib.contextmanager
def shared(setting: Setting = USUAL) -> Iterator[Callable[[Scenario], None]]:
    """One server for several tests: runs a scenario after the other against it."""
    with asyncio.Runner() as runner:
        place_of = running(setting)
        place = runner.run(place_of.__aenter__())
        yield lambda scenario: runner.run(asyncio.wait_for(scenario(place), setting.seconds))
        runner.run(place_of.__aexit__(None, None, None))
