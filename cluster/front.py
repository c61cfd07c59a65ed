"""The public servers of one gateway, beside the head or not, and what looks at it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.gateway.gateway import Gateway
from cluster.gateway.grpc_server import Contract, GrpcServer
from cluster.gateway.listening import Endpoint
from cluster.gateway.openai.config import HttpConfig
from cluster.gateway.operator import Operator
from cluster.live.config import NodeSettings
from cluster.metrics.config import ObservationConfig
from cluster.metrics.observation import Observation
from cluster.metrics.routes_seen import RequestNodes
from core.ids import RequestId
from engine.model_info import LoadFormat, read_model_info

if TYPE_CHECKING:
    from cluster.gateway.openai.server import HttpServer
    from cluster.metrics.port import MetricsPort


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """Where clients call and scrapers read. `http` None: gRPC only. `vllm_model`: speak vLLM's contract of it, too.

    `nodes_of`: HTTP answers tell where they were made; None: they do not.
    """

    grpc: Endpoint
    http: HttpConfig | None
    observe: ObservationConfig
    vllm_model: NodeSettings | None = None
    nodes_of: Callable[[RequestId], RequestNodes] | None = None


class Front:
    """To be used in one asyncio loop. Owns: its servers; `observation` is started and stopped with them."""

    def __init__(self, gateway: Gateway, operator: Operator, observation: Observation, config: FrontConfig) -> None:
        self._gateway = gateway
        self._operator = operator
        self._observation = observation
        self.server = GrpcServer(gateway, operator.shown, config.grpc, self._contracts(config.vllm_model))
        self.http = self._http_server(config)
        self.metrics = self._metrics_port(config.observe)

    async def start(self) -> int:
        """Listen everywhere; the gRPC port. Raises ConfigError, and then `stop` must follow."""
        await self._gateway.chats.start()
        port = await self.server.start()
        if self.http is not None:
            await self.http.start()
        if self.metrics is not None:
            await self.metrics.start()
        self._observation.start()
        return port

    async def drain(self, grace_s: float = 0.0) -> None:
        """Takes no new request, lets open ones go on for `grace_s`, breaks off the rest. Twice is fine."""
        http = () if self.http is None else (self.http.stop(grace_s),)
        await asyncio.gather(self.server.stop(grace_s), *http)
        self._gateway.close()

    async def stop(self) -> None:
        """After `drain`: nobody looks on any more. Twice is fine."""
        if self.metrics is not None:
            await self.metrics.stop()
        await self._observation.stop()

    def _contracts(self, node: NodeSettings | None) -> tuple[Contract, ...]:
        """What the gRPC port serves beside our own interface."""
        if node is None:
            return ()
        from cluster.gateway.smg import SMG_SERVICE_NAME, SmgModel, SmgService

        info = read_model_info(node.model, LoadFormat(node.load_format))
        model = SmgModel(node.model, info.family, tuple(sorted(info.eos_token_ids)), node.dtype)
        return (Contract(SMG_SERVICE_NAME, SmgService(self._gateway, self._operator.shown, model).handlers()),)

    def _http_server(self, config: FrontConfig) -> "HttpServer | None":
        """Routers of other rooms are handed in here; nobody who goes without HTTP pays for its import."""
        if config.http is None:
            return None
        from cluster.gateway.cluster_routes import cluster_routes
        from cluster.gateway.dashboard.routes import OPEN_PATHS, dashboard_routes
        from cluster.gateway.openai.door import Door
        from cluster.gateway.openai.server import HttpServer
        from cluster.metrics.exposition import Exposition
        from cluster.metrics.routes import metrics_routes

        door = Door(self._gateway, self._operator.shown, config.http, config.nodes_of)
        routers = (
            metrics_routes(Exposition(self._observation), self._gateway.access),
            dashboard_routes(self._observation),
            cluster_routes(self._observation),
        )
        http = HttpServer(door, config.grpc.tls, routers, OPEN_PATHS)
        self._observation.batches = http.batches
        return http

    def _metrics_port(self, config: ObservationConfig) -> "MetricsPort | None":
        if config.metrics_port is None:
            return None
        from cluster.metrics.exposition import Exposition
        from cluster.metrics.port import MetricsPort

        return MetricsPort(Exposition(self._observation), config.metrics_host, config.metrics_port)
