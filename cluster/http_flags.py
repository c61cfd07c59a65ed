"""Flags of the OpenAI HTTP interface, named as vLLM names them."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cluster.batches.config import DEFAULT_MAX_CONCURRENT, DEFAULT_MAX_FILE_MB, DEFAULT_MAX_LINES, MB, BatchConfig
from cluster.gateway.openai.config import DEFAULT_HTTP_PORT, CallFormat, HttpConfig
from core.errors import ConfigError

if TYPE_CHECKING:
    from cluster.gateway_service import GatewayConfig
    from cluster.service import ServiceConfig

C = TypeVar("C", "ServiceConfig", "GatewayConfig")
"""What is served by: beside a head, or joined to one."""

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
    _add_batch_flags(parser)


def add_node_headers_flag(parser: argparse.ArgumentParser) -> None:
    """Of `serve` alone: further gateways do not hear of routes."""
    parser.add_argument(
        "--debug-node-headers",
        action="store_true",
        help="HTTP answers tell where they were made, by x-prefill-node and x-decode-node",
    )


def with_node_headers(config: "ServiceConfig", args: argparse.Namespace) -> "ServiceConfig":
    """A service whose answers tell their nodes, where asked for. Raises ConfigError."""
    if args.debug_node_headers and config.http is None:
        raise ConfigError(["--debug-node-headers needs the HTTP interface: --port is -1"])
    return replace(config, node_headers=args.debug_node_headers)


def _add_batch_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batch files")
    group.add_argument(
        "--batch-dir",
        default=None,
        metavar="DIR",
        help="keep batch files and their results here (default: none are taken)",
    )
    group.add_argument(
        "--batch-max-file-mb", type=int, default=DEFAULT_MAX_FILE_MB, metavar="MB", help="of one input, in 10^6 bytes"
    )
    group.add_argument("--batch-max-lines", type=int, default=DEFAULT_MAX_LINES, metavar="N", help="of one input")
    group.add_argument(
        "--batch-max-concurrent",
        type=int,
        default=DEFAULT_MAX_CONCURRENT,
        metavar="N",
        help="requests of all batches that are at work at once",
    )


def with_http(config: C, args: argparse.Namespace) -> C:
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
    batches = _batches(args, problems)
    if port == NO_HTTP and batches is not None:
        problems.append("--batch-dir needs the HTTP interface: --port is -1")
    if problems or origins is None:
        raise ConfigError(problems)
    if port == NO_HTTP:
        return config
    http = HttpConfig(config.grpc_host, port, origins, CallFormat(args.tool_call_parser), batches=batches)
    return replace(config, http=http)


def _batches(args: argparse.Namespace, problems: list[str]) -> BatchConfig | None:
    """None where none are kept; the limits are checked all the same."""
    for name in ("max_file_mb", "max_lines", "max_concurrent"):
        if (value := getattr(args, f"batch_{name}")) < 1:
            problems.append(f"--batch-{name.replace('_', '-')} must be at least 1, not {value}")
    if args.batch_dir is None:
        return None
    folder, max_file_bytes = Path(args.batch_dir).expanduser().absolute(), args.batch_max_file_mb * MB
    stored = max(BatchConfig(folder).max_stored_bytes, 2 * max_file_bytes)
    return BatchConfig(folder, max_file_bytes, args.batch_max_lines, args.batch_max_concurrent, stored)


def _origins(text: str) -> tuple[str, ...] | None:
    """None where it is no list of texts."""
    try:
        origins = json.loads(text)
    except ValueError:
        return None
    if not isinstance(origins, list) or not all(isinstance(each, str) for each in origins):
        return None
    return tuple(origins)
