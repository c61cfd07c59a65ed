"""`penstock keys`: mint a key, and look at those that an access file has."""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from rich.table import Table

from cluster.console import OUT
from cluster.gateway.keys import digest_of, mint_key
from cluster.gateway.keys_file import read_access_file
from core.errors import ConfigError

WORDS = (
    "tenant",
    "models",
    "requests_per_minute",
    "tokens_per_minute",
    "max_concurrent",
    "max_priority",
    "slo_class",
    "expires",
)
_KEYS_LINE = re.compile(r"^keys:[ \t]*(?:#.*)?$", re.MULTILINE)


def run_new(args: argparse.Namespace) -> int:
    """Mints a key. Raises ConfigError where the entry would not be taken."""
    key = mint_key()
    entry = _entry(args, digest_of(key).hex())
    path = None if args.access_file is None else Path(args.access_file).expanduser()
    _write(path, entry)
    print(key)
    told = "it is kept nowhere: put it where its holder finds it now"
    print(f"penstock: above is the key of {args.id!r}; {told}", file=sys.stderr)
    if path is None:
        print("penstock: its entry for an access file (serve --access-file FILE):", file=sys.stderr)
        print("keys:\n" + entry, end="", file=sys.stderr)
    else:
        print(f"penstock: its entry is in {path}; SIGHUP makes a server that uses it read it again", file=sys.stderr)
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Prints what a file says. Raises ConfigError with every problem."""
    settings = read_access_file(Path(args.access_file).expanduser())
    table = Table("key", "tenant", "models", "requests/min", "tokens/min", "at once", "priority", "class", "expires")
    for stored in settings.keys:
        grant, quota = stored.grant, stored.grant.quota
        limits = (quota.requests_per_minute, quota.tokens_per_minute, quota.max_concurrent)
        table.add_row(
            grant.id + (" (admin)" if grant.is_admin else ""),
            grant.tenant,
            ", ".join(grant.models) or "all",
            *("-" if limit is None else f"{limit:g}" for limit in limits),
            str(grant.max_priority),
            grant.slo_class,
            _date(grant.expires_at),
        )
    OUT.print(table)
    for each in settings.classes:
        targets = f"TTFT {each.slo.ttft_s:g} s, TPOT {each.slo.tpot_s:g} s" if each.slo else "no targets"
        OUT.print(f"class {each.name}: {targets}, priority {each.priority}")
    return 0


def _date(moment: float | None) -> str:
    if moment is None:
        return "never"
    day = time.strftime("%Y-%m-%d", time.gmtime(moment))
    return day if moment > time.time() else f"{day} (over)"


def _entry(args: argparse.Namespace, digest: str) -> str:
    """One item of `keys:`, in YAML that is JSON inside: names that a person gave cannot break out of it."""
    given = {"id": args.id, "sha256": digest}
    given |= {word: value for word in WORDS if (value := getattr(args, word)) not in (None, [])}
    if args.admin:
        given["admin"] = True
    lines = [f"{word}: {json.dumps(value)}" for word, value in given.items()]
    return "  - " + "\n    ".join(lines) + "\n"


def _write(path: Path | None, entry: str) -> None:
    """Puts the entry first under `keys:` and the rest as it was; checked before anything is replaced."""
    text = path.read_text() if path is not None and path.exists() else ""
    if not _KEYS_LINE.search(text):
        if re.search(r"^(keys\s*:|\s*\{)", text, re.MULTILINE):
            raise ConfigError([f"{path}: has no line `keys:` with items below; add the entry by hand"])
        text += ("\n" if text and not text.endswith("\n") else "") + "keys:\n"
    text = _KEYS_LINE.sub(lambda match: match.group() + "\n" + entry.rstrip("\n"), text, count=1)
    folder = None if path is None else path.resolve().parent
    try:
        handle, name = tempfile.mkstemp(prefix=".access-", suffix=".yaml", dir=folder)
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}"]) from error
    new = Path(name)  # readable by its owner only, as mkstemp makes it
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        try:
            read_access_file(new)
        except ConfigError as error:
            raise ConfigError([problem.replace(name, str(path or "the entry")) for problem in error.problems]) from None
        if path is not None:
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)
