"""Flags of `penstock trace`: workloads as files, and where the time of requests went."""

import argparse

from cluster.client_flags import add_client_flags
from cluster.flags import DEFAULT_PORT


def add_trace_flags(parser: argparse.ArgumentParser) -> None:
    """Its two commands."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    convert = commands.add_parser("convert", help="a trace or a generated workload, as a file of the native form")
    convert.add_argument("source", metavar="IN", help="a file or a generator, as --workload takes it")
    convert.add_argument("target", metavar="OUT", help="the native trace, JSON lines")
    convert.add_argument("--seed", type=int, default=0, help="of what is generated")
    convert.set_defaults(run=_convert)
    show = commands.add_parser("show", help="the stages of requests that ended lately on a running server")
    show.add_argument("request", nargs="?", default=None, help="the id of an answer (default: the last ones)")
    show.add_argument("--last", type=int, default=10, metavar="N", help="how many; a server remembers 256")
    show.add_argument("--perfetto", metavar="FILE", default=None, help="write them here, for ui.perfetto.dev")
    show.add_argument("--address", default=f"127.0.0.1:{DEFAULT_PORT}", help="of the server")
    add_client_flags(show)
    show.set_defaults(run=_show)


def _convert(args: argparse.Namespace) -> int:
    from cluster.trace_command import run_trace_convert

    return run_trace_convert(args)


def _show(args: argparse.Namespace) -> int:
    from cluster.trace_show import run_trace_show

    return run_trace_show(args)
