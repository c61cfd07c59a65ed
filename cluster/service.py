"""A whole Penstock in one process, nodes aside: scheduler, gateway, gRPC server and the live cluster behind them."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cluster.gateway.gateway import Gateway
from cluster.gateway.grpc_server import GrpcServer
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway.streams import Streams
from cluster.gateway.tokenizer import Tokenizer
from cluster.live.cluster import LiveCluster
from cluster.live.config import LiveConfig
from cluster.live.supervisor import OnProgress
from cluster.memory import available_memory_bytes
from core.errors import ConfigError
from core.ids import GatewayId
from engine.model_info import LoadFormat, ModelInfo, read_model_info
from scheduler.config import SchedulerConfig
from scheduler.policies.least_loaded import LeastLoaded
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
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    limits: Limits = field(default_factory=Limits)


class Service:
    """To be made, started and stopped in one asyncio loop. Owns: all that it starts."""

    def __init__(self, config: ServiceConfig, on_progress: OnProgress) -> None:
        problems = config.live.problems()
        if problems:
            raise ConfigError(problems)
        self.config = config
        gateway_id = GatewayId(f"gateway-{secrets.token_hex(4)}")
        timers = config.live.timers
        self.scheduler = Scheduler(config.scheduler, LeastLoaded())
        self.cluster = LiveCluster(config.live, self.scheduler, on_progress)
        model = _served_model(config)
        tokenizer = Tokenizer.from_folder(config.live.node.model)
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


def _served_model(config: ServiceConfig) -> ServedModel:
    node = config.live.node
    info = read_model_info(node.model, LoadFormat(node.load_format))
    problems = _misfits(config.live, info)
    if problems:
        raise ConfigError(problems)
    max_model_len = node.max_model_len or info.max_model_len
    return ServedModel(config.served_model_name, info.vocab_size, max_model_len, node.block_size)


def _misfits(live: LiveConfig, info: ModelInfo) -> list[str]:
    """What this model, or this machine's memory, makes impossible: told once, before any node starts."""
    node, found = live.node, list[str]()
    if node.max_model_len is not None and node.max_model_len > info.max_model_len:
        found.append(f"--max-model-len must be at most the model's {info.max_model_len}, not {node.max_model_len}")
    block_bytes = info.kv_layout(node.block_size, node.dtype).bytes_per_block
    num_blocks = node.num_kv_blocks or node.kv_cache_memory_bytes // block_bytes
    if num_blocks < 1:
        limit = f"--kv-cache-memory-bytes ({node.kv_cache_memory_bytes})"
        found.append(f"{limit} must hold at least one block of {block_bytes} bytes")
    wanted, free = len(live.slots) * num_blocks * block_bytes, available_memory_bytes()
    if wanted > free and live.ray.address is None:
        pools = f"the KV pools of {len(live.slots)} nodes ({num_blocks} blocks of {block_bytes} bytes each)"
        lower = "--kv-cache-memory-bytes" if node.num_kv_blocks is None else "--num-gpu-blocks-override"
        found.append(f"{pools} need {wanted >> 20} MiB and {free >> 20} MiB of memory are free; lower {lower}")
    return found
