"""The public gRPC server: inference, health, reflection, and its limits."""

import asyncio
import socket
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.gateway.cluster_state import StateProvider
from cluster.gateway.gateway import Gateway
from cluster.gateway.inference_service import SERVICE_NAME, InferenceService, UnknownMethods
from cluster.gateway.limits import Limits
from core.errors import ConfigError

HEALTH_INTERVAL_S = 0.25
MAX_METADATA_BYTES = 16 * 1024


class GrpcServer:
    """Serves one gateway. Binds to loopback unless told otherwise; port 0 lets the kernel choose.

    Owns: the listening socket and the task that keeps the health service true.
    """

    def __init__(self, gateway: Gateway, state: StateProvider, host: str = "127.0.0.1", port: int = 0) -> None:
        self.address = ""
        self._gateway = gateway
        self._state = state
        self._wanted = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; the port. Raises ConfigError where the address cannot be had."""
        why_not = _why_not(self._wanted)
        if why_not:
            raise _cannot_listen(self._wanted, why_not)
        server = grpc.aio.server(options=server_options(self._gateway.limits))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        server.add_generic_rpc_handlers((InferenceService(self._gateway, self._state).handlers(), UnknownMethods()))
        try:
            port = server.add_insecure_port(self._wanted)
        except RuntimeError as error:
            await server.start()  # one that never started keeps its poller when it is stopped
            await server.stop(None)
            raise _cannot_listen(self._wanted, str(error)) from error
        await self._set_health()
        await server.start()
        self._server, self.address = server, f"{self._wanted.rpartition(':')[0]}:{port}"
        self._task = asyncio.create_task(self._keep_health(), name="grpc-health")
        return port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Refuse new requests, let open ones go on for `grace_s`, then break them off. Twice is fine."""
        if self._server is None or self._task is None:
            return
        self._gateway.drain()
        server, task, self._server, self._task = self._server, self._task, None, None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._health.enter_graceful_shutdown()
        await server.stop(grace_s)

    async def _keep_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            await self._set_health()

    async def _set_health(self) -> None:
        serving = self._state().can_serve and not self._gateway.is_draining
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)


def _cannot_listen(address: str, why: str) -> ConfigError:
    problem = f"the gRPC server cannot listen on {address}: {why}"
    return ConfigError([f"{problem}; choose another --host or --grpc-port (0: any free one)"])


def _why_not(address: str) -> str:
    """Why an address cannot be had, in the system's own words: gRPC says only that it cannot. Empty where it can."""
    host, _, port = address.rpartition(":")
    try:
        places = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        reasons = [_bind(socket.socket(*kind), place) for *kind, _, place in places]
    except OSError as error:
        return error.strerror or str(error)
    return "" if "" in reasons else reasons[0]


def _bind(probe: socket.socket, place: Any) -> str:
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def server_options(limits: Limits) -> list[tuple[str, int]]:
    """gRPC's own bounds. Twice the message limit is taken in, so that a message over it gets an answer with details."""
    return [
        ("grpc.max_receive_message_length", 2 * limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams_per_connection),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.so_reuseport", 0),
    ]
