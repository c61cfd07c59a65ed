"""Flags of `penstock gateway`: which cluster it joins, and where its own clients call."""

import argparse
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.access_flags import add_server_flags, check_contract, server_tls
from cluster.config_layers import Layered, read_whole
from cluster.flags import add_address_flags
from cluster.http_flags import add_http_flags, with_http
from cluster.live.handshake import ClusterToken
from cluster.live.token_file import token_from
from cluster.observe_flags import add_observe_flags, with_observe
from core.errors import ConfigError, collected

if TYPE_CHECKING:
    from cluster.gateway_service import GatewayConfig
    from cluster.service import ServiceConfig

PLACE = re.compile(r"[^\s:/\[\]]{1,255}:(?P<port>[0-9]{1,5})")


def add_gateway_flags(parser: argparse.ArgumentParser) -> None:
    """All that a further gateway can be told; model, limits, keys and timers are the head's."""
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--join",
        default=None,
        metavar="HOST:PORT",
        help="the cluster address that `penstock serve --cluster-token-file` prints",
    )
    group.add_argument(
        "--cluster-token-file",
        default=None,
        metavar="FILE",
        help="the token that the head keeps there, mode 0600; '-' reads standard input",
    )
    group.add_argument(
        "--join-timeout", type=float, default=60.0, metavar="SECONDS", help="how long the head may take to be there"
    )
    group.add_argument("--model", default=None, metavar="FOLDER", help="the model's folder here (default: the head's)")
    add_address_flags(parser)
    add_http_flags(parser)
    add_server_flags(parser.add_argument_group("access"))
    add_observe_flags(parser)
    parser.add_argument("--admin-host", default="127.0.0.1", help="address that --metrics-port binds")


def checked_gateway(found: Layered) -> "GatewayConfig":
    """The gateway that all layers ask for together. Raises ConfigError with every problem, each with its place."""
    return read_whole(found, gateway_config)


def gateway_config(args: argparse.Namespace) -> "GatewayConfig":
    """The gateway that the flags ask for. Raises ConfigError with every problem that they alone show."""
    from cluster.gateway_service import GatewayConfig

    problems = _problems(args)
    tls = collected(problems, lambda: server_tls(args))
    collected(problems, lambda: check_contract(args))
    path = args.cluster_token_file
    token = None if path is None else collected(problems, lambda: token_from(path))
    config = GatewayConfig(
        head=args.join or "",
        token=token or ClusterToken(b""),
        model=None if args.model is None else Path(args.model).expanduser().resolve(),
        grpc_host=args.host,
        grpc_port=args.grpc_port,
        tls=tls,
        vllm_grpc=args.vllm_grpc,
        join_s=args.join_timeout,
        allows_anybody=args.insecure_no_keys,
    )
    for part in (with_http, with_observe):
        config = collected(problems, partial(part, config, args)) or config
    if problems or token is None:
        raise ConfigError(problems)
    return config


def _problems(args: argparse.Namespace) -> list[str]:
    needed = (("--join", args.join), ("--cluster-token-file", args.cluster_token_file))
    found = [f"{flag} is missing" for flag, value in needed if value is None]
    place = None if args.join is None else PLACE.fullmatch(args.join)
    if args.join is not None and (place is None or not 0 < int(place["port"]) <= 65535):
        found.append(f"--join must be HOST:PORT of a head, not {args.join[:64]!r}")
    if not 0 <= args.join_timeout < math.inf:
        found.append(f"--join-timeout must be a number of seconds from 0 on, not {args.join_timeout:g}")
    if not 0 <= args.grpc_port <= 65535:
        found.append(f"--grpc-port must be from 0 to 65535, not {args.grpc_port}")
    return found


def add_head_flags(parser: argparse.ArgumentParser) -> None:
    """Of `serve`: whether gateways of other processes may join, and where."""
    group = parser.add_argument_group("further gateways")
    group.add_argument(
        "--cluster-token-file",
        default=None,
        metavar="FILE",
        help="let `penstock gateway` join with the token that is kept there, mode 0600; written where there is none",
    )
    group.add_argument(
        "--cluster-port",
        type=int,
        default=0,
        metavar="PORT",
        help="where gateways and nodes find this process; 0 lets the kernel choose",
    )


def with_gateways(config: "ServiceConfig", args: argparse.Namespace) -> "ServiceConfig":
    """A service that gateways of other processes may join. Raises ConfigError."""
    if not 0 <= args.cluster_port <= 65535:
        raise ConfigError([f"--cluster-port must be from 0 to 65535, not {args.cluster_port}"])
    path = None if args.cluster_token_file is None else Path(args.cluster_token_file).expanduser()
    return replace(config, live=replace(config.live, token_file=path, port=args.cluster_port))
