"""A gateway as a process of its own: servers and streams here, scheduler and supervisor at the head that it joined."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster.access_flags import is_loopback
from cluster.front import Front, FrontConfig
from cluster.gateway.access import Access
from cluster.gateway.formats import Formats
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys import AccessSettings
from cluster.gateway.listening import Endpoint
from cluster.gateway.openai.config import HttpConfig
from cluster.gateway.streams import Streams
from cluster.gateway.tls import TLSFiles
from cluster.gateway.tokenizer import Tokenizer
from cluster.joined_operator import JoinedOperator
from cluster.live.config import NodeSettings
from cluster.live.gateway_facts import GatewayFacts, tokenizer_digest
from cluster.live.handshake import ClusterToken
from cluster.live.joined import REJOIN_S, JoinedCluster
from cluster.live.joining import knock, mint_gateway_id
from cluster.metrics.config import ObservationConfig
from cluster.metrics.model_work import model_work
from cluster.metrics.observation import Observation
from core.errors import ConfigError, Unavailable
from core.ids import GatewayId

LOG = logging.getLogger("penstock.gateway")
JOIN_S = 60.0


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where the head is and where clients call; all else is the head's to say.

    `model`: where the model's folder is on this host; None: where the head has it. `join_s`: how long the head may take
    to be there. `allows_anybody`: listen beyond loopback although no key is asked for.
    """

    head: str
    token: ClusterToken
    model: Path | None = None
    grpc_host: str = "127.0.0.1"
    grpc_port: int = 50051
    tls: TLSFiles | None = None
    http: HttpConfig | None = None
    vllm_grpc: bool = False
    observe: ObservationConfig = field(default_factory=ObservationConfig)
    join_s: float = JOIN_S
    allows_anybody: bool = False


async def ask_facts(config: GatewayConfig) -> GatewayFacts:
    """What the head says, as soon as it is there. Raises ConfigError, and Unavailable when `join_s` are over."""
    end = time.monotonic() + config.join_s
    while True:
        try:
            return (await knock(config.head, config.token, mint_gateway_id())).facts
        except Unavailable:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(REJOIN_S)


class GatewayService:
    """To be made, started and stopped in one asyncio loop. Owns: all that it starts.

    Raises ConfigError where this host is not fit to serve what the head serves.
    """

    def __init__(self, config: GatewayConfig, facts: GatewayFacts) -> None:
        self.config = config
        node = _model_here(config, facts)
        _check_hosts(config, facts.access)
        served = facts.model.served
        self.cluster = JoinedCluster(config.head, config.token, facts)
        tokenizer = Tokenizer.from_folder(node.model, served.vocab_size, facts.model.chat_template)
        self.gateway = Gateway(served, tokenizer, Streams(GatewayId(""), facts.timers), facts.limits, self.cluster.tell)
        self.gateway.cut_off = "this gateway has not joined its cluster yet"
        self.gateway.access = Access(facts.access)
        self.gateway.formats = Formats(node.model)
        self.cluster.handle = self.gateway.handle
        self.cluster.on_joined = self._joined
        self.cluster.on_lost = self.gateway.lose_cluster
        self.cluster.on_access = self._take_access
        operator = JoinedOperator(self.cluster)
        work = model_work(node.model, node.dtype, node.quantization)
        self.observation = Observation(self.gateway, operator, config.observe, work)
        public = Endpoint(config.grpc_host, config.grpc_port, config.tls)
        vllm_model = node if config.vllm_grpc else None
        self.front = Front(
            self.gateway, operator, self.observation, FrontConfig(public, config.http, config.observe, vllm_model)
        )

    @property
    def address(self) -> str:
        """Where clients call."""
        return self.front.server.address

    async def start(self) -> None:
        """Returns when requests are taken. Raises ConfigError or Unavailable, and then nothing is left running."""
        try:
            await self.front.start()
            await self.cluster.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self, grace_s: float = 0.0) -> None:
        """Takes no new request, lets open ones go on for `grace_s`, leaves the cluster. Twice is fine."""
        await self.front.drain(grace_s)
        await self.front.stop()
        await self.cluster.stop()

    def _joined(self, gateway: GatewayId) -> None:
        """A head that came back may have other limits and keys than the one before."""
        self.gateway.limits = self.cluster.facts.limits
        self._take_access(self.cluster.facts.access)
        self.gateway.find_cluster(gateway)

    def _take_access(self, settings: AccessSettings) -> None:
        """Where the last key would go, what was told before stays: an open door needs a new start here, too."""
        if settings == self.gateway.access.settings:
            return
        try:
            self.gateway.access.reload(settings)
        except ConfigError as error:
            for problem in error.problems:
                LOG.error("who may call stays as it was: %s", problem)
        else:
            LOG.warning("the head says who may call: %d keys", len(settings.keys))


def _model_here(config: GatewayConfig, facts: GatewayFacts) -> NodeSettings:
    """The model's folder on this host, with what the nodes make of it. Raises ConfigError where it is another one."""
    told = facts.model
    folder = config.model or Path(told.folder)
    if not folder.is_dir():
        raise ConfigError([f"the model's folder {str(folder)!r} is not on this host: give --model FOLDER"])
    if tokenizer_digest(folder) != told.tokenizer:
        raise ConfigError([f"--model {folder}: its tokenizer files are not those that the head serves with"])
    return NodeSettings(folder, told.dtype, told.load_format, quantization=told.quantization)


def _check_hosts(config: GatewayConfig, access: AccessSettings) -> None:
    """Nobody but this machine may call a server that asks for no key, unless that is wanted. Raises ConfigError."""
    if access.is_open and not config.allows_anybody and not is_loopback(config.grpc_host):
        why = f"--host {config.grpc_host} is open to other machines, and the head asks for no key"
        raise ConfigError([f"{why}: give the head an --access-file, or say --insecure-no-keys here if you mean it"])
