"""A whole Penstock in one process, nodes aside: scheduler, gateway, its servers and the live cluster behind them."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.costs import preemption_costs, read_table
from cluster.front import Front, FrontConfig
from cluster.gateway.access import Access
from cluster.gateway.admin_server import AdminServer
from cluster.gateway.chat_template import chosen_template
from cluster.gateway.formats import Formats
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys import AccessSettings
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.listening import Endpoint
from cluster.gateway.openai.config import HttpConfig
from cluster.gateway.sampling_defaults import MODELS_OWN, sampling_defaults
from cluster.gateway.streams import Streams
from cluster.gateway.tls import TLSFiles
from cluster.gateway.tokenizer import Tokenizer
from cluster.gpu_probe import found_gpus
from cluster.kube.settings import FleetMover, KubeSettings
from cluster.kv_pool import KVPool, pool_of
from cluster.live.cluster import LiveCluster
from cluster.live.config import LiveConfig
from cluster.live.gateway_facts import facts_of, view_of
from cluster.live.gateways import News
from cluster.live.gpus import Gpu, check_remote, in_use, is_cuda, nodes_per_gpu, placed
from cluster.live.supervisor import OnProgress
from cluster.memory import available_memory_bytes
from cluster.metrics.config import ObservationConfig
from cluster.metrics.model_work import ModelWork, model_work
from cluster.metrics.observation import Observation
from cluster.metrics.routes_seen import RoutesSeen
from cluster.operating import ClusterOperator
from cluster.recording import Recorder, Setup
from core.errors import ConfigError
from core.ids import GatewayId
from engine.cost_belief import node_costs
from engine.model_info import LoadFormat, model_digest, read_model_info
from scheduler.config import SchedulerConfig
from scheduler.controller import Controller, ControllerConfig
from scheduler.policies.build import DEFAULT_POLICY, policy_of
from scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from cluster.gateway.admin_http import AdminHttp
    from cluster.gateway.openai.server import HttpServer
    from cluster.metrics.port import MetricsPort

LOG = logging.getLogger("penstock.service")
EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "engine" / "embedded"
EMBEDDED_NAME = "penstock-embedded"

FindGpus = Callable[[], tuple[Gpu, ...]]


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What is served and where. A port of 0 is of the kernel's choice; `admin`, `admin_http`, `http` None: not served.

    `chat_template`: a file that stands instead of the model's own. `generation_config`: where defaults of sampling are
    read: `auto` in the model's folder, `vllm` nowhere, or a folder. `node_headers`: HTTP answers tell their nodes.
    """

    live: LiveConfig
    served_model_name: str
    grpc_host: str = "127.0.0.1"
    grpc_port: int = 50051
    cost_table: Path | None = None
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    controller: ControllerConfig | None = None
    limits: Limits = field(default_factory=Limits)
    record: Path | None = None
    record_max_bytes: int = 256_000_000
    policy: str = DEFAULT_POLICY
    access: AccessSettings = field(default_factory=AccessSettings)
    access_file: Path | None = None
    tls: TLSFiles | None = None
    admin: Endpoint | None = None
    admin_http: Endpoint | None = None
    vllm_grpc: bool = False
    http: HttpConfig | None = None
    kube: KubeSettings | None = None
    observe: ObservationConfig = field(default_factory=ObservationConfig)
    generation_config: str = MODELS_OWN
    chat_template: Path | None = None
    node_headers: bool = False


class Service:
    """To be made, started and stopped in one asyncio loop. Owns: all that it starts."""

    def __init__(self, config: ServiceConfig, on_progress: OnProgress, find_gpus: FindGpus = found_gpus) -> None:
        problems = config.live.problems()
        if problems:
            raise ConfigError(problems)
        model = _served_model(config)
        self.gpus = _gpus_for(config.live, find_gpus)
        self.pool = _pool_on(self.gpus, config.live)
        self.config = config = _settled(config, self.pool, self.gpus)
        gateway_id = GatewayId(f"gateway-{secrets.token_hex(4)}")
        timers = config.live.timers
        controller = Controller(config.controller) if config.controller else None
        self.scheduler = Scheduler(config.scheduler, policy_of(config.policy, config.scheduler), controller)
        self._recorder = self._recorded(config)
        routes = RoutesSeen(self._recorder or self.scheduler)
        self.cluster = LiveCluster(config.live, routes, on_progress)
        template = None if config.chat_template is None else chosen_template(config.chat_template)
        tokenizer = Tokenizer.from_folder(config.live.node.model, model.vocab_size, template)
        self.gateway = Gateway(model, tokenizer, Streams(gateway_id, timers), config.limits, self.cluster.tell)
        self.cluster.join(gateway_id, self.gateway.handle)
        self.gateway.access = Access(config.access)
        self.gateway.formats = Formats(config.live.node.model)
        self.operator = ClusterOperator(self.cluster, config.live.slots, config.controller)
        if config.live.token_file is not None:
            facts = facts_of(self.gateway, config.live.node, timers)
            self.cluster.admit_gateways(News(facts, lambda: view_of(self.operator)))
        self.observation = Observation(
            self.gateway, self.operator, config.observe, _model_work(config.live), routes.take
        )
        public = Endpoint(config.grpc_host, config.grpc_port, config.tls)
        vllm_model = config.live.node if config.vllm_grpc else None
        nodes_of = routes.seen if config.node_headers else None
        fronts = FrontConfig(public, config.http, config.observe, vllm_model, nodes_of)
        self.front = Front(self.gateway, self.operator, self.observation, fronts)
        self.admin = AdminServer(self.gateway, self.operator, config.admin) if config.admin else None
        self.admin_http = self._operators_http(config.admin_http)
        self.mover = FleetMover(config.kube, config.live, self.cluster, self.operator) if config.kube else None
        if self.mover is not None:
            self.operator.count = self.mover.scaler.counters.named
            self.observation.scaling = self.mover.scaler.counters
        self._moving: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """Where clients call."""
        return self.front.server.address

    @property
    def http(self) -> "HttpServer | None":
        """The OpenAI interface; None: not served."""
        return self.front.http

    @property
    def metrics(self) -> "MetricsPort | None":
        """The port of scrapers without a key; None: there is none."""
        return self.front.metrics

    async def start(self) -> None:
        """Returns when requests are taken. Raises ConfigError or NodeLost, and then nothing is left running."""
        try:
            self.port = await self.front.start()
            if self.admin is not None:
                await self.admin.start()
            if self.admin_http is not None:
                await self.admin_http.start()
            await self.cluster.start()
        except BaseException:
            await self._stop_servers()
            raise
        if self.mover is not None:
            self._moving = asyncio.create_task(self.mover.run())

    async def stop(self, grace_s: float = 0.0) -> None:
        """Takes no new request, lets open ones go on for `grace_s`, ends everything."""
        await self._stop_servers(grace_s)
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
        await self.cluster.stop()
        if self._recorder is not None:
            self._recorder.close()

    def reload_access(self) -> None:
        """Read the access file again. Where it is not sound, what was read before stays, and the log says why."""
        if self.config.access_file is None:
            return
        from cluster.gateway.keys_file import read_access_file

        try:
            self.gateway.access.reload(read_access_file(self.config.access_file))
        except ConfigError as error:
            for problem in error.problems:
                LOG.error("the access file is not taken: %s", problem)
        else:
            LOG.warning("the access file was read again: %d keys", len(self.gateway.access.settings.keys))
            self.cluster.tell_access(self.gateway.access.settings)

    async def _stop_servers(self, grace_s: float = 0.0) -> None:
        """Operators may look on while requests drain."""
        await self.front.drain(grace_s)
        if self.admin is not None:
            await self.admin.stop()
        if self.admin_http is not None:
            await self.admin_http.stop()
        await self.front.stop()

    def _operators_http(self, at: Endpoint | None) -> "AdminHttp | None":
        """Nobody who goes without HTTP pays for its import."""
        if at is None:
            return None
        from cluster.gateway.admin_http import AdminHttp

        return AdminHttp(self.gateway, self.operator, at)

    def _recorded(self, config: ServiceConfig) -> Recorder | None:
        if config.record is None:
            return None
        setup = Setup(config.policy, config.scheduler, config.controller)
        return Recorder(self.scheduler, setup, config.record, config.record_max_bytes)


def _served_model(config: ServiceConfig) -> ServedModel:
    node = config.live.node
    info = read_model_info(node.model, LoadFormat(node.load_format))
    longest = node.max_model_len
    if longest is not None and longest > info.max_model_len:
        raise ConfigError([f"--max-model-len must be at most the model's {info.max_model_len}, not {longest}"])
    return ServedModel(
        config.served_model_name,
        info.vocab_size,
        longest or info.max_model_len,
        node.block_size,
        sampling_defaults(config.generation_config, node.model, info.vocab_size),
    )


def _model_work(live: LiveConfig) -> ModelWork | None:
    return model_work(live.node.model, live.node.dtype, live.node.quantization)


def _gpus_for(live: LiveConfig, find_gpus: FindGpus) -> tuple[Gpu, ...]:
    """Of this machine, where nodes are to use them. Raises ConfigError where there is none."""
    if not is_cuda(live.node.device):
        return ()
    if live.launcher == "ray" and live.ray.address is not None:
        check_remote(live)
        return ()
    return find_gpus()


def _pool_on(gpus: tuple[Gpu, ...], live: LiveConfig) -> KVPool:
    if not gpus:
        return pool_of(live, available_memory_bytes())
    least = min(gpu.free_bytes for gpu in in_use(live, gpus))
    return pool_of(live, least, nodes_per_gpu(len(live.slots), len(gpus)))


def _settled(config: ServiceConfig, pool: KVPool, gpus: tuple[Gpu, ...]) -> ServiceConfig:
    """With what every node is told: its GPU, its number of blocks, and the costs where a table gives them."""
    node = replace(config.live.node, num_kv_blocks=pool.num_blocks)
    if config.cost_table is not None:
        table = read_table(config.cost_table, node, model_digest(node.model, LoadFormat(node.load_format)))
        node = replace(node, costs=preemption_costs(table.recompute()), step_costs=node_costs(table))
    return replace(config, live=placed(replace(config.live, node=node), gpus))
