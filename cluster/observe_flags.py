"""Flags of what an operator sees: metrics, the request log, traces, and what the hardware is worth."""

import argparse
import math
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from cluster.metrics.config import ObservationConfig, RequestLogFormat
from core.errors import ConfigError

if TYPE_CHECKING:
    from cluster.gateway_service import GatewayConfig
    from cluster.service import ServiceConfig

C = TypeVar("C", "ServiceConfig", "GatewayConfig")
"""What is served by: beside a head, or joined to one."""

NO_PORT = -1
TERA, GIGA = 1e12, 1e9
OTEL_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def add_observe_flags(parser: argparse.ArgumentParser) -> None:
    """Metrics, log lines, traces, peaks and prices."""
    group = parser.add_argument_group("observability")
    group.add_argument(
        "--request-log",
        choices=tuple(RequestLogFormat),
        default=RequestLogFormat.OFF.value,
        help="one line for each ended request on standard error, without its text",
    )
    group.add_argument(
        "--otlp-traces-endpoint",
        default=None,
        metavar="URL",
        help="send OpenTelemetry traces of every request to this collector, as http://127.0.0.1:4317 (extra otel)",
    )
    group.add_argument(
        "--metrics-port",
        type=int,
        default=NO_PORT,
        help="serve /metrics without a key on a port of its own at --admin-host; 0 lets the kernel choose, -1: none",
    )
    group.add_argument(
        "--vllm-metrics",
        choices=("on", "off"),
        default="on",
        help="serve a subset of the metrics by vLLM's names as well",
    )
    group.add_argument(
        "--node-cost-per-hour",
        type=float,
        default=None,
        metavar="PRICE",
        help="of one node, in any currency: metrics then tell the cost per million tokens",
    )
    group.add_argument(
        "--peak-tflops",
        type=float,
        default=None,
        metavar="N",
        help="10^12 operations per second that one node's hardware reaches at best; metrics then tell MFU",
    )
    group.add_argument(
        "--peak-memory-gbs",
        type=float,
        default=None,
        metavar="N",
        help="10^9 bytes per second that one node's memory gives at best; metrics then tell MBU",
    )


def with_observe(config: C, args: argparse.Namespace) -> C:
    """A service with what is to be seen of it. Raises ConfigError with every problem."""
    problems = [*_number_problems(args), *_trace_problems(args.otlp_traces_endpoint)]
    if not NO_PORT <= args.metrics_port <= 65535:
        problems.append(f"--metrics-port must be from 0 to 65535, or -1 for none, not {args.metrics_port}")
    if problems:
        raise ConfigError(problems)
    observe = ObservationConfig(
        request_log=RequestLogFormat(args.request_log),
        otlp_endpoint=args.otlp_traces_endpoint,
        metrics_host=args.admin_host,
        metrics_port=None if args.metrics_port == NO_PORT else args.metrics_port,
        vllm_names=args.vllm_metrics == "on",
        node_cost_per_hour=args.node_cost_per_hour,
        peak_flops=None if args.peak_tflops is None else args.peak_tflops * TERA,
        peak_bytes_per_s=None if args.peak_memory_gbs is None else args.peak_memory_gbs * GIGA,
    )
    return replace(config, observe=observe)


def _number_problems(args: argparse.Namespace) -> list[str]:
    named = (
        ("--node-cost-per-hour", args.node_cost_per_hour),
        ("--peak-tflops", args.peak_tflops),
        ("--peak-memory-gbs", args.peak_memory_gbs),
    )
    return [
        f"{flag} must be above 0, not {value:g}"
        for flag, value in named
        if value is not None and not 0 < value < math.inf
    ]


def _trace_problems(endpoint: str | None) -> list[str]:
    if endpoint is None:
        return []
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        return [f"--otlp-traces-endpoint must be http://HOST:PORT or https://HOST:PORT, not {endpoint[:64]}"]
    if not has_opentelemetry():
        return ["--otlp-traces-endpoint needs the extra otel: pip install 'penstock[otel]'"]
    return []


def has_opentelemetry() -> bool:
    """Whether the extra is installed."""
    try:
        return all(find_spec(name) is not None for name in OTEL_PACKAGES)
    except ModuleNotFoundError:
        return False
