"""`penstock config show | validate | schema | init`."""

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path

from rich.table import Table

from cluster.config_flags import GATEWAY, SERVE
from cluster.config_layers import Layered, Sourced, layered
from cluster.config_schema import schema_of, starting_file
from cluster.config_table import settings_of
from cluster.console import OUT
from cluster.gateway_flags import checked_gateway
from cluster.serve_config import checked


def run_show(args: argparse.Namespace) -> int:
    """Prints the settings with their sources. Raises ConfigError, after that, where they are not sound."""
    found: Layered = args.layers
    if args.json:
        shown = {it.setting.key: {"value": it.setting.shown(it.value), "source": it.source} for it in found.values}
        print(json.dumps(shown, indent=2, default=str))
    else:
        OUT.print(_table(found.values, args.all))
    checked(found)
    return 0


def run_validate(args: argparse.Namespace) -> int:
    """Checks a file alone, by what `penstock serve --config FILE`, or `gateway`, would say of it."""
    path, of_gateway = Path(args.file).expanduser(), args.of == GATEWAY
    others = settings_of(*args.tables[SERVE]) if of_gateway else ()
    found = layered(argparse.Namespace(), settings_of(*args.tables[args.of]), {}, path, others)
    if of_gateway:
        checked_gateway(found)
    else:
        checked(found)
    given = [it.setting.key for it in found.values if it.source != "default"]
    print(f"{args.file}: sound, {len(given)} settings: {', '.join(given)}")
    return 0


def run_schema(args: argparse.Namespace) -> int:
    """Prints the JSON Schema of a configuration file."""
    json.dump(schema_of(settings_of(*args.tables[args.of])), sys.stdout, indent=2)
    print()
    return 0


def run_init(args: argparse.Namespace) -> int:
    """Prints a file to start from."""
    print(f"# penstock {args.of} --config FILE. Flags win over the environment, it over this file.\n")
    for line in starting_file(settings_of(*args.tables[args.of])):
        print(line)
    return 0


def _table(values: tuple[Sourced, ...], with_defaults: bool) -> Table:
    table = Table("setting", "value", "source")
    for _, members in groupby(sorted(values, key=lambda it: it.setting.group), key=lambda it: it.setting.group):
        chosen = [it for it in members if with_defaults or it.source != "default"]
        for it in chosen:
            shown = it.setting.shown(it.value)
            table.add_row(it.setting.key, "-" if shown is None else str(shown), it.source)
        if chosen:
            table.add_section()
    return table
