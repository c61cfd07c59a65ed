"""The operators' gRPC server: an address of its own, loopback unless there is an operator's key."""

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.gateway.admin_service import ADMIN_SERVICE_NAME, AdminService
from cluster.gateway.gateway import Gateway
from cluster.gateway.keys_grpc import KeyCheck
from cluster.gateway.listening import Endpoint, listen, server_options
from cluster.gateway.operator import Operator
from cluster.gateway.rpc_border import UnknownMethods
from cluster.grpc_poller import keep_poller


class AdminServer:
    """Serves one operator. Owns: its listening socket. It stays while requests drain, and goes with the cluster."""

    def __init__(self, gateway: Gateway, operator: Operator, at: Endpoint) -> None:
        self.address = ""
        self._gateway = gateway
        self._operator = operator
        self._at = at
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listen; the port. Raises ConfigError where the address or the certificate cannot be had."""
        self._at.check()
        check = KeyCheck(lambda header, wall_s: self._gateway.access.admin(header, wall_s))
        keep_poller()
        server = grpc.aio.server(interceptors=[check], options=server_options(self._gateway.limits))
        alive = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(alive, server)
        names = (ADMIN_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        service = AdminService(self._gateway, self._operator)
        server.add_generic_rpc_handlers((service.handlers(), UnknownMethods()))
        port = await listen(server, self._at)
        await asyncio.gather(
            *(alive.set(name, health_pb2.HealthCheckResponse.SERVING) for name in ("", ADMIN_SERVICE_NAME))
        )
        await server.start()
        self._server, self.address = server, f"{self._at.shown_host}:{port}"
        return port

    async def stop(self) -> None:
        """Break off what is open. Twice is fine."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
