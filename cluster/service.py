"""A whole Penstock in one process, nodes aside: scheduler, gateway, gRPC server and the live cluster behind them."""

import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.costs import node_costs, preemption_costs, read_table
from cluster.gateway.gateway import Gateway
from cluster.gateway.grpc_server import GrpcServer
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.streams import Streams
from cluster.gateway.tokenizer import Tokenizer
from cluster.kv_pool import KVPool, pool_of
from cluster.live.cluster import LiveCluster
from cluster.live.config import LiveConfig
from cluster.live.supervisor import OnProgress
from cluster.memory import available_memory_bytes
from cluster.recording import Recorder, Setup
from core.errors import ConfigError
from core.ids import GatewayId
from engine.model_info import LoadFormat, model_digest, read_model_info
from scheduler.config import SchedulerConfig
from scheduler.controller import Controller, ControllerConfig
from scheduler.policies.build import DEFAULT_POLICY, policy_of
from scheduler.scheduler import Scheduler

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "engine" / "embedded"
EMBEDDED_NAME = "penstock-embedded"


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What is served and where. `grpc_port` 0 lets the kernel choose."""

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


class Service:
    """To be made, started and stopped in one asyncio loop. Owns: all that it starts."""

    def __init__(self, config: ServiceConfig, on_progress: OnProgress) -> None:
        problems = config.live.problems()
        if problems:
            raise ConfigError(problems)
        model = _served_model(config)
        self.pool = pool_of(config.live, available_memory_bytes())
        self.config = config = _settled(config, self.pool)
        gateway_id = GatewayId(f"gateway-{secrets.token_hex(4)}")
        timers = config.live.timers
        controller = Controller(config.controller) if config.controller else None
        self.scheduler = Scheduler(config.scheduler, policy_of(config.policy, config.scheduler), controller)
        self._recorder = self._recorded(config)
        self.cluster = LiveCluster(config.live, self._recorder or self.scheduler, on_progress)
        tokenizer = Tokenizer.from_folder(config.live.node.model, model.vocab_size)
        self.gateway = Gateway(model, tokenizer, Streams(gateway_id, timers), config.limits, self.cluster.tell)
        self.cluster.join(gateway_id, self.gateway.handle)
        self.server = GrpcServer(self.gateway, self.cluster.shown, config.grpc_host, config.grpc_port)
        self.port = 0

    @property
    def address(self) -> str:
        """Where clients call."""
        return self.server.address

    async def start(self) -> None:
        """Returns when requests are taken. Raises ConfigError or NodeLost, and then nothing is left running."""
        self.port = await self.server.start()
        try:
            await self.cluster.start()
        except BaseException:
            await self.server.stop()
            raise

    async def stop(self, grace_s: float = 0.0) -> None:
        """Takes no new request, lets open ones go on for `grace_s`, ends everything."""
        await self.server.stop(grace_s)
        await self.cluster.stop()
        if self._recorder is not None:
            self._recorder.close()

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
    return ServedModel(config.served_model_name, info.vocab_size, longest or info.max_model_len, node.block_size)


def _settled(config: ServiceConfig, pool: KVPool) -> ServiceConfig:
    """With what every node is told: its number of blocks, and the costs where a table gives them."""
    node = replace(config.live.node, num_kv_blocks=pool.num_blocks)
    if config.cost_table is not None:
        table = read_table(config.cost_table, node, model_digest(node.model, LoadFormat(node.load_format)))
        node = replace(node, costs=preemption_costs(table.recompute()), step_costs=node_costs(table))
    return replace(config, live=replace(config.live, node=node))
