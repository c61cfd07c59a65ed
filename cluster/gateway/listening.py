"""Where a gRPC server listens, and by which certificate; why an address cannot be had, in the system's words."""

import socket
from dataclasses import dataclass
from typing import Any

import grpc

from cluster.gateway.limits import Limits
from cluster.gateway.tls import TLSFiles
from core.errors import ConfigError

MAX_METADATA_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to bind; port 0 lets the kernel choose. `flags` are those that a person would change."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: TLSFiles | None = None
    flags: str = "--host or --grpc-port"

    @property
    def shown_host(self) -> str:
        """As it stands before a colon and a port."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def check(self) -> None:
        """To be called before a server is made. Raises ConfigError where address or certificate cannot be had."""
        why_not = _why_not(self)
        if why_not:
            raise _cannot_listen(self, why_not)
        if self.tls is not None:
            self.tls.check()


async def listen(server: grpc.aio.Server, at: Endpoint) -> int:
    """Bind a server that was not started yet; the port. Raises ConfigError where the address cannot be had."""
    wanted = f"{at.shown_host}:{at.port}"
    credentials = None if at.tls is None else at.tls.grpc_credentials()
    try:
        return server.add_insecure_port(wanted) if credentials is None else server.add_secure_port(wanted, credentials)
    except RuntimeError as error:
        await server.start()  # one that never started keeps its poller when it is stopped
        await server.stop(None)
        raise _cannot_listen(at, str(error)) from error


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


def _cannot_listen(at: Endpoint, why: str) -> ConfigError:
    problem = f"the gRPC server cannot listen on {at.shown_host}:{at.port}: {why}"
    return ConfigError([f"{problem}; choose another {at.flags} (0: any free one)"])


def _why_not(at: Endpoint) -> str:
    """Why an address cannot be had, in the system's own words: gRPC says only that it cannot. Empty where it can."""
    try:
        places = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)
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
