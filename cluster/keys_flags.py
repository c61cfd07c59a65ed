"""Flags of `penstock keys`."""

import argparse


def add_keys_flags(parser: argparse.ArgumentParser) -> None:
    """`keys new` and `keys list`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    new = commands.add_parser("new", help="mint a key: it is printed once, and its entry for the access file")
    new.add_argument("id", help="its name, in logs and in the file: letters, digits, _ and -")
    new.add_argument("--access-file", metavar="FILE", default=None, help="add the entry here (made if there is none)")
    new.add_argument("--tenant", default=None, help="whose it is: KV is shared inside a tenant only (default: the id)")
    new.add_argument("--model", dest="models", action="append", default=[], help="opens this one only; may repeat")
    new.add_argument("--requests-per-minute", type=float, default=None, metavar="N")
    new.add_argument("--tokens-per-minute", type=float, default=None, metavar="N", help="of prompts and answers")
    new.add_argument("--max-concurrent", type=int, default=None, metavar="N", help="open requests at once")
    new.add_argument("--max-priority", type=int, default=None, metavar="N", help="higher ones are clamped to it")
    new.add_argument("--slo-class", default=None, metavar="NAME", help="of requests that name none")
    new.add_argument("--expires", default=None, metavar="DATE", help="such as 2027-01-31")
    new.add_argument("--admin", action="store_true", help="opens the admin port as well")
    new.set_defaults(run=_new)
    listing = commands.add_parser("list", help="check an access file and list its keys and classes")
    listing.add_argument("access_file", metavar="FILE")
    listing.set_defaults(run=_list)


def _new(args: argparse.Namespace) -> int:
    from cluster.keys_command import run_new

    return run_new(args)


def _list(args: argparse.Namespace) -> int:
    from cluster.keys_command import run_list

    return run_list(args)
