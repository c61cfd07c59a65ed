"""All that `penstock serve` is told, as one frozen tree; what is wrong with any part of it is told at once."""

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from cluster.access_flags import with_access
from cluster.config_layers import Layered, read_whole
from cluster.controller_flags import controller_config
from cluster.flags import service_config
from cluster.gateway_flags import with_gateways
from cluster.http_flags import with_http, with_node_headers
from cluster.kube_flags import with_kube
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from cluster.observe_flags import with_observe
from cluster.service import EMBEDDED_MODEL, EMBEDDED_NAME, ServiceConfig
from core.errors import ConfigError, collected


def serve_config(args: argparse.Namespace) -> ServiceConfig:
    """The service that the arguments ask for. Raises ConfigError with every problem of every part."""
    problems: list[str] = []
    config = collected(problems, lambda: service_config(args))
    controller = collected(problems, lambda: controller_config(args))
    bounds = collected(problems, lambda: _record_bytes(args))
    config = config or _stand_in(args)
    record = None if args.record is None else Path(args.record).expanduser()
    config = replace(config, controller=controller, record=record, record_max_bytes=bounds or config.record_max_bytes)
    for part in (with_access, with_http, with_node_headers, with_observe, with_kube, with_gateways):
        config = collected(problems, partial(part, config, args)) or config
    problems += config.live.problems()
    if problems:
        raise ConfigError(problems)
    return config


def checked(found: Layered) -> ServiceConfig:
    """The service that all layers ask for together. Raises ConfigError with every problem, each with its place."""
    return read_whole(found, serve_config)


def _stand_in(args: argparse.Namespace) -> ServiceConfig:
    """What the other parts are checked with where the first is not sound."""
    live = LiveConfig(NodeSettings(EMBEDDED_MODEL), slots_of(0, 0, 1, 1, 1), "local")
    return ServiceConfig(live, EMBEDDED_NAME, args.host, args.grpc_port)


def _record_bytes(args: argparse.Namespace) -> int:
    if not 0 < args.record_max_mb < math.inf:
        raise ConfigError([f"--record-max-mb must be above 0, not {args.record_max_mb:g}"])
    return int(args.record_max_mb * 1e6)
