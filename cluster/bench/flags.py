"""The commands of `penstock bench`: each is one file of this package with its flags and its run."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from cluster.bench.engine_plan import add_engine_flags
from cluster.bench.gateway_flags import add_gateway_flags
from cluster.bench.kv_plan import add_kv_flags
from cluster.bench.route_flags import add_route_flags
from cluster.bench.serve_flags import add_serve_flags
from cluster.bench.soak_flags import add_soak_flags


@dataclass(frozen=True, slots=True)
class Bench:
    """One measurement. `run` imports what it needs when it is called."""

    name: str
    says: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    """All measurements, as commands of `penstock bench`."""
    commands = parser.add_subparsers(title="measurements", required=True, metavar="measurement")
    for bench in BENCHES:
        command = commands.add_parser(bench.name, help=bench.says)
        bench.add_flags(command)
        command.set_defaults(run=bench.run)


def _engine(args: argparse.Namespace) -> int:
    from cluster.bench.engine import run_bench_engine

    return run_bench_engine(args)


def _gateway(args: argparse.Namespace) -> int:
    from cluster.bench.gateway import run_bench_gateway

    return run_bench_gateway(args)


def _kv(args: argparse.Namespace) -> int:
    from cluster.bench.kv import run_bench_kv

    return run_bench_kv(args)


def _route(args: argparse.Namespace) -> int:
    from cluster.bench.route import run_bench_route

    return run_bench_route(args)


def _serve(args: argparse.Namespace) -> int:
    from cluster.bench.serve import run_bench_serve

    return run_bench_serve(args)


def _soak(args: argparse.Namespace) -> int:
    from cluster.bench.soak import run_bench_soak

    return run_bench_soak(args)


BENCHES = (
    Bench("engine", "the engine against its peers and the machine's own limits", add_engine_flags, _engine),
    Bench("gateway", "the gateway over mock nodes: cost of a streamed token, TTFT, gaps", add_gateway_flags, _gateway),
    Bench("kv", "KV between processes by every transport, against memcpy and peers; the handoff", add_kv_flags, _kv),
    Bench("route", "how fast the scheduler decides, on 64 nodes with a prefix index", add_route_flags, _route),
    Bench(
        "serve",
        "open-loop load on a running server: goodput, percentiles, where SLOs were lost",
        add_serve_flags,
        _serve,
    ),
    Bench("soak", "a small cluster under load for long: memory, descriptors, blocks", add_soak_flags, _soak),
)
