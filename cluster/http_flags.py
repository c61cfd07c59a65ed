"""Flags of the OpenAI HTTP interface, named as vLLM names them."""

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.gateway.openai.config import DEFAULT_HTTP_PORT, CallFormat, HttpConfig
from core.errors import ConfigError

if TYPE_CHECKING:
    from cluster.service import ServiceConfig

NO_HTTP = -1


def add_http_flags(parser: argparse.ArgumentParser) -> None:
    """Where OpenAI clients call; the address is `--host`, as gRPC's."""
    group = parser.add_argument_group("OpenAI HTTP")
    group.add_argument(
        "--port",
        type=int,
        default=None,
        help=f"of the OpenAI interface; 0 lets the kernel choose, -1: none (default: {DEFAULT_HTTP_PORT}, or 0 where "
        "--grpc-port is 0)",
    )
    group.add_argument(
        "--allowed-origins",
        default="[]",
        metavar="JSON",
        help="web pages of these may call from a browser (CORS), as a JSON list; none by default",
    )
    group.add_argument(
        "--tool-call-parser",
        choices=tuple(CallFormat),
        default=CallFormat.AUTO.value,
        help="how the model writes tool calls; auto: as its chat template says",
    )


def with_http(config: "ServiceConfig", args: argparse.Namespace) -> "ServiceConfig":
    """A service with its HTTP interface. Raises ConfigError with every problem."""
    problems, origins = [], _origins(args.allowed_origins)
    port = args.port
    if port is None:
        port = DEFAULT_HTTP_PORT if config.grpc_port else 0
    if not NO_HTTP <= port <= 65535:
        problems.append(f"--port must be from 0 to 65535, or -1 for none, not {port}")
    if port and port == config.grpc_port:
        problems.append(f"--port and --grpc-port are both {port}")
    if origins is None:
        problems.append(f'--allowed-origins must be a JSON list of texts, as ["*"], not {args.allowed_origins[:64]}')
    if problems or origins is None:
        raise ConfigError(problems)
    if port == NO_HTTP:
        return config
    return replace(config, http=HttpConfig(config.grpc_host, port, origins, CallFormat(args.tool_call_parser)))


def _origins(text: str) -> tuple[str, ...] | None:
    """None where it is no list of texts."""
    try:
        origins = json.loads(text)
    except ValueError:
        return None
    if not isinstance(origins, list) or not all(isinstance(each, str) for each in origins):
        return None
    return tuple(origins)
