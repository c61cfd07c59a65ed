"""Flags of workloads and of what they are held to, the same wherever there is load."""

import argparse
from math import isfinite

from cluster.workload.spec import workload_of
from cluster.workload.traces import Trace
from core.errors import ConfigError
from core.request import SLO

DEFAULT_WORKLOAD = "sharegpt"


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """`--workload`, `--rate`, `--scale`, `--requests`, `--seed`, and the SLO."""
    load = parser.add_argument_group("workload")
    load.add_argument(
        "--workload",
        "--trace",
        action="append",
        metavar="WHAT",
        help="a trace file, or sharegpt, humaneval, longbench, azure-code, mooncake-conversation, aibrix-ramp, lengths "
        "then ,name=value: rate speed seconds requests start tenant priority ttft tpot in out arrivals block; offline, "
        "keep-stamps. May be given several times: all at once (default: sharegpt)",
    )
    load.add_argument("--rate", type=float, default=None, metavar="RPS", help="mean rate of all, by scaling time")
    load.add_argument("--scale", type=float, default=1.0, metavar="FACTOR", help="time runs so much faster")
    load.add_argument("--requests", type=int, default=None, metavar="N", help="the first N only")
    load.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    slo = parser.add_argument_group("SLO")
    slo.add_argument("--ttft-slo", type=float, default=2.0, metavar="SECONDS", help="to the first token")
    slo.add_argument("--tpot-slo", type=float, default=0.1, metavar="SECONDS", help="mean per token after it")


def slo_of(args: argparse.Namespace) -> SLO:
    """The SLO of the run. Raises ConfigError."""
    problems = [
        f"{flag} must be above 0 seconds, not {value:g}"
        for flag, value in (("--ttft-slo", args.ttft_slo), ("--tpot-slo", args.tpot_slo))
        if not (isfinite(value) and value > 0)
    ]
    if problems:
        raise ConfigError(problems)
    return SLO(args.ttft_slo, args.tpot_slo)


def asked_workload(args: argparse.Namespace) -> Trace:
    """The workload of the flags, with notes on what was done to it. Raises ConfigError."""
    if args.requests is not None and args.requests < 1:
        raise ConfigError([f"--requests must be at least 1, not {args.requests}"])
    if args.rate is not None and not (isfinite(args.rate) and args.rate > 0):
        raise ConfigError([f"--rate must be above 0, not {args.rate:g}"])
    trace = workload_of(args.workload or [DEFAULT_WORKLOAD], args.seed, args.requests)
    workload, notes = trace.workload, list(trace.notes)
    if args.requests is not None:
        workload = workload.first(args.requests)
    if args.rate is not None:
        notes.append(f"time scaled by {args.rate / workload.rate_rps if workload.rate_rps else 1:.4g}")
        workload = workload.at_rate(args.rate)
    if args.scale != 1:
        workload = workload.scaled(args.scale)
        notes.append(f"time scaled by {args.scale:.4g}")
    return Trace(workload, tuple(notes))
