"""A small command line with one setting of every kind, and the real one of `penstock serve`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.config_layers import Layered, read_arguments
from cluster.config_table import add_config_flag


def fraction(text: str) -> float:
    """What a flag with a parser of its own takes: `1/4` is 0.25."""
    above, _, below = text.partition("/")
    try:
        return int(above) / int(below)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction") from error


def small() -> argparse.ArgumentParser:
    """`tool run`, with a configuration, and `tool other`, without."""
    parser = argparse.ArgumentParser(prog="tool", allow_abbrev=False)
    parser.add_argument("--log-level", choices=("info", "debug"), default="info")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", allow_abbrev=False)
    run.add_argument("model", nargs="?", default="small")
    sizes = run.add_argument_group("sizes")
    sizes.add_argument("--num-rows", type=int, default=64, help="rows")
    sizes.add_argument("--share", type=float, default=0.5)
    sizes.add_argument("--part", type=fraction, default=0.25)
    sizes.add_argument("--depth", type=int, choices=(1, 2), default=1)
    run.add_argument("--rates", type=float, nargs="+", default=[2.0])
    run.add_argument("--no-keys", action="store_true")
    run.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True)
    run.add_argument("--mode", choices=("on", "off"), default="on")
    run.add_argument("--api-token", default="t-default")
    run.add_argument("--tls-key", metavar="FILE", default=None)
    run.add_argument("--proxy", default=None)
    run.add_argument("--json", default=None)
    add_config_flag(run, (parser,))
    other = commands.add_parser("other")
    other.add_argument("--num-rows", type=int, default=1)
    return parser


def read(
    argv: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    file: str | None = None,
    folder: Path | None = None,
) -> Layered:
    """`tool run` with these flags, variables and file content."""
    flags = list(argv)
    if file is not None:
        assert folder is not None
        path = folder / "tool.yaml"
        path.write_text(file)
        flags += ["--config", str(path)]
    return read_arguments(small(), ["run", *flags], environ or {})


def sources(found: Layered) -> dict[str, str]:
    """Key to source, of what is not the default."""
    return {it.setting.key: it.source for it in found.values if it.source != "default"}
