"""The public gRPC server: inference, health, reflection, and its limits."""

import asyncio
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.gateway.cluster_state import StateProvider
from cluster.gateway.gateway import Gateway
from cluster.gateway.inference_service import SERVICE_NAME, InferenceService
from cluster.gateway.keys_grpc import KeyCheck
from cluster.gateway.listening import Endpoint, listen, server_options
from cluster.gateway.rpc_border import UnknownMethods
from cluster.grpc_poller import keep_poller

HEALTH_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class Contract:
    """A further service of the same port: its full name and its methods."""

    name: str
    handler: grpc.GenericRpcHandler


class GrpcServer:
    """Serves one gateway. Binds to loopback unless told otherwise; port 0 lets the kernel choose.

    Owns: the listening socket and the task that keeps the health service true. `also` serves further contracts.
    """

    def __init__(
        self,
        gateway: Gateway,
        state: StateProvider,
        at: Endpoint = Endpoint(),  # noqa: B008 - frozen
        also: tuple[Contract, ...] = (),
    ) -> None:
        self.address = ""
        self._gateway = gateway
        self._state = state
        self._at = at
        self._also = also
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; the port. Raises ConfigError where the address or the certificate cannot be had."""
        self._at.check()
        check = KeyCheck(lambda header, wall_s: self._gateway.access.caller(header, wall_s))
        keep_poller()
        server = grpc.aio.server(interceptors=[check], options=server_options(self._gateway.limits))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, *(each.name for each in self._also), health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        handlers = [InferenceService(self._gateway, self._state).handlers(), *(each.handler for each in self._also)]
        server.add_generic_rpc_handlers((*handlers, UnknownMethods()))
        port = await listen(server, self._at)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)  # the process lives, whatever its nodes do
        await self._set_health()
        await server.start()
        self._server, self.address = server, f"{self._at.shown_host}:{port}"
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
        for service in (SERVICE_NAME, *(each.name for each in self._also)):
            await self._health.set(service, status)
