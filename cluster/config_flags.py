"""Flags of `penstock config`, and what makes a command read a configuration."""

import argparse
from collections.abc import Callable

from cluster.config_table import add_config_flag

SERVE, GATEWAY = "serve", "gateway"

AddFlags = Callable[[argparse.ArgumentParser], None]


def add_config_command(
    parser: argparse.ArgumentParser,
    above: argparse.ArgumentParser,
    add_flags: AddFlags,
    gateway: argparse.ArgumentParser,
) -> None:
    """`config show`, `validate`, `schema` and `init`; `add_flags` adds the flags of `serve`, `gateway` has its own."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    show = commands.add_parser("show", help="what `serve` with the same flags would take, and where each value is from")
    add_flags(show)
    add_config_flag(show, (above,))
    show.add_argument("--all", action="store_true", help="those that nobody has set as well")
    show.add_argument("--json", action="store_true", help="all of them, as JSON")
    show.set_defaults(run=_show)

    tables = {SERVE: show.get_default("config_parsers"), GATEWAY: gateway.get_default("config_parsers")}
    validate = commands.add_parser("validate", help="check a file alone, and name everything that is wrong with it")
    validate.add_argument("file", metavar="FILE")
    schema = commands.add_parser("schema", help="the JSON Schema of a configuration file")
    start = commands.add_parser("init", help="print a file with every setting, its default and what it is for")
    for each, run in ((validate, _validate), (schema, _schema), (start, _init)):
        each.add_argument("--of", choices=tuple(tables), default=SERVE, help="which command reads the file")
        each.set_defaults(run=run, tables=tables)


def _show(args: argparse.Namespace) -> int:
    from cluster.config_command import run_show

    return run_show(args)


def _validate(args: argparse.Namespace) -> int:
    from cluster.config_command import run_validate

    return run_validate(args)


def _schema(args: argparse.Namespace) -> int:
    from cluster.config_command import run_schema

    return run_schema(args)


def _init(args: argparse.Namespace) -> int:
    from cluster.config_command import run_init

    return run_init(args)
