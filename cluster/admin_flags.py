"""Flags of the operators' commands."""

import argparse
from typing import TypeVar

from cluster.client_flags import add_client_flags

DEFAULT_ADMIN_ADDRESS = "127.0.0.1:50052"
P = TypeVar("P", bound=argparse.ArgumentParser)
ROLES = ("prefill", "decode", "mixed", "closed", "auto")


def add_admin_commands(commands: "argparse._SubParsersAction[P]") -> None:
    """`status`, `top`, `decisions`, `role`, `ratio` and `drain`."""
    status = _command(commands, "status", "what a running cluster is and does now")
    status.add_argument("--json", action="store_true", help="all of it, as JSON")

    top = _command(commands, "top", "the same, kept up to date")
    top.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    top.add_argument("--num-updates", type=int, default=None, metavar="N", help="end after so many (default: never)")

    decisions = _command(commands, "decisions", "what was decided about the nodes, and why")
    decisions.add_argument("--follow", action="store_true", help="and what will be, as it is decided")
    decisions.add_argument("--num-past", type=int, default=20, metavar="N", help="with --follow: so many first")

    role = _command(commands, "role", "set by hand what a node does, or give it back to the controller")
    role.add_argument("node", metavar="NODE", help="its name, such as decode-0")
    role.add_argument("role", choices=ROLES)
    role.add_argument("--prefill-tokens-per-step", type=int, default=None, metavar="N")
    role.add_argument("--max-decode-rows", type=int, default=None, metavar="N")
    role.add_argument("--force", action="store_true", help="even where nobody would prefill or decode afterwards")

    ratio = _command(commands, "ratio", "set by hand how many nodes prefill and decode, or give all back")
    ratio.add_argument("ratio", metavar="P:D|auto")

    drain = _command(commands, "drain", "empty a node: its rows go on elsewhere, nothing new comes")
    drain.add_argument("node", metavar="NODE", nargs="?", help="its name, such as decode-0")
    drain.add_argument("--for-restart", action="store_true", help="the node that comes after it is open again")
    drain.add_argument("--host", default=None, metavar="ADDRESS", help="every node of this host instead")
    drain.add_argument("--force", action="store_true", help="even the last one that prefills or decodes")
    drain.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="wait no longer than this")


def _command(commands: "argparse._SubParsersAction[P]", name: str, about: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about)
    parser.add_argument("--admin-address", default=DEFAULT_ADMIN_ADDRESS, help="of the server's admin port")
    add_client_flags(parser)
    parser.set_defaults(run=_run, act=name)
    return parser


def _run(args: argparse.Namespace) -> int:
    from cluster.admin_commands import run_admin

    return run_admin(args)
