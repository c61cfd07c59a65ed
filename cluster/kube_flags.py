"""Flags of a server in a Kubernetes cluster whose worker pods come and go."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from core.errors import ConfigError

if TYPE_CHECKING:
    from cluster.service import ServiceConfig


def add_kube_flags(parser: argparse.ArgumentParser) -> None:
    """Whose replicas are moved, and who says how many."""
    group = parser.add_argument_group("Kubernetes")
    group.add_argument(
        "--kube-raycluster",
        default=None,
        metavar="NAME",
        help="move the worker groups of this RayCluster to the number of nodes that is wanted (needs the extra k8s)",
    )
    group.add_argument(
        "--kube-fleet-size",
        default=None,
        metavar="NAME",
        help="the Deployment whose replicas are that number, for KEDA to move (default: the controller says it)",
    )


def with_kube(config: "ServiceConfig", args: argparse.Namespace) -> "ServiceConfig":
    """A service that moves its fleet. Raises ConfigError."""
    if args.kube_raycluster is None:
        if args.kube_fleet_size is not None:
            raise ConfigError(["--kube-fleet-size needs --kube-raycluster"])
        return config
    from cluster.kube.settings import KubeSettings, check

    settings = KubeSettings(args.kube_raycluster, args.kube_fleet_size or "")
    check(settings, config.live)
    return replace(config, kube=settings)
