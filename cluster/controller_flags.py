"""Flags of the controller that sets the nodes' mixes."""

import argparse

from core.errors import ConfigError
from core.request import SLO
from scheduler.capacity import CapacityConfig
from scheduler.controller import ControllerConfig
from scheduler.layouts import Floors
from scheduler.replays import ReplayConfig

MODES = ("off", "advise", "on")


def add_controller_flags(parser: argparse.ArgumentParser) -> None:
    """Who chooses which nodes prefill and which decode, and for which promises."""
    group = parser.add_argument_group("controller")
    group.add_argument(
        "--controller",
        choices=MODES,
        default=None,
        help="chooses each node's phases and chunks while requests run; advise: says only what it would do (default: "
        "on where no layout is given, off where --prefill, --decode or --aggregated fix one)",
    )
    group.add_argument("--ttft-slo", type=float, default=2.0, metavar="SECONDS", help="of requests that name none")
    group.add_argument("--tpot-slo", type=float, default=0.1, metavar="SECONDS", help="of requests that name none")
    group.add_argument("--min-prefill-nodes", type=int, default=1, metavar="N", help="accept prompts at all times")
    group.add_argument("--min-decode-nodes", type=int, default=1, metavar="N", help="decode at all times")


def controller_config(args: argparse.Namespace) -> ControllerConfig | None:
    """The flags as configuration; None where the controller is off. Raises ConfigError with every problem."""
    mode = args.controller
    if mode is None:
        mode = "on" if args.prefill is args.decode is args.aggregated is None else "off"
    problems = [*_number_problems(args), *(() if mode == "off" else _floor_problems(args))]
    if problems:
        raise ConfigError(problems)
    if mode == "off":
        return None
    return ControllerConfig(
        advises=mode == "advise",
        slo=SLO(args.ttft_slo, args.tpot_slo),
        floors=Floors(args.min_prefill_nodes, args.min_decode_nodes),
        replays=ReplayConfig(),
        capacity=CapacityConfig(),
    )


def _floors(args: argparse.Namespace) -> tuple[tuple[str, int], ...]:
    return ("min-prefill-nodes", args.min_prefill_nodes), ("min-decode-nodes", args.min_decode_nodes)


def _number_problems(args: argparse.Namespace) -> list[str]:
    found = [
        f"--{flag} must be above 0, not {value:g}"
        for flag, value in (("ttft-slo", args.ttft_slo), ("tpot-slo", args.tpot_slo))
        if not 0 < value < float("inf")
    ]
    return found + [f"--{flag} must be at least 1, not {value}" for flag, value in _floors(args) if value < 1]


def _floor_problems(args: argparse.Namespace) -> list[str]:
    num_nodes = sum(getattr(args, name) or 0 for name in ("prefill", "decode", "aggregated")) or 2
    return [
        f"--{flag} must be at most the {num_nodes} nodes, not {value}"
        for flag, value in _floors(args)
        if value > num_nodes
    ]
