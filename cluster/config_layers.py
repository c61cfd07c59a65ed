"""Flags over environment over file over default: every value with where it came from, every problem at once."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from cluster.client_flags import KEY_VARIABLE
from cluster.config_table import CONFIG_DEST, NO_SETTINGS, PREFIX, Setting, settings_of
from cluster.config_yaml import nearest, read_document
from core.errors import ConfigError

CONFIG_VARIABLE = f"{PREFIX}CONFIG"
OTHER_VARIABLES = (CONFIG_VARIABLE, KEY_VARIABLE, f"{PREFIX}NATIVE", f"{PREFIX}FAULT_FLIP_KV_BYTE")
"""Variables of ours that are no settings of a command."""

C = TypeVar("C")

_LINK_NAME = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class _Known:
    """A command's settings, and those of others that may stand beside them and are passed over."""

    settings: Sequence[Setting]
    others: Sequence[Setting]

    def passes_over(self, key: str) -> bool:
        """Whether a key of a file is another command's alone."""
        return any(setting.key == key for setting in self.others)

    def passes_over_variable(self, name: str) -> bool:
        """The same of a variable of the environment."""
        return any(setting.variable == name for setting in self.others)


@dataclass(frozen=True, slots=True)
class Sourced:
    """One setting as it stands. `source` is `default`, `flag`, a variable's name, or a file with a line."""

    setting: Setting
    value: object
    source: str


@dataclass(frozen=True, slots=True)
class Layered:
    """A command's arguments, complete, and where each came from. `problems` are those of environment and file."""

    args: argparse.Namespace
    values: tuple[Sourced, ...]
    problems: tuple[str, ...]

    def told(self, problem: str) -> str:
        """A problem with flags, with the places of those that no flag gave."""
        places = [
            f"{value.setting.key} is from {value.source}"
            for value in self.values
            if value.source not in ("default", "flag") and re.search(rf"--{value.setting.key}(?![\w-])", problem)
        ]
        return f"{problem} ({'; '.join(places)})" if places else problem


def read_whole(found: Layered, read: Callable[[argparse.Namespace], C]) -> C:
    """What all layers ask for together, as `read` makes it of arguments.

    Raises ConfigError with every problem, each with its place.
    """
    problems, config = list(found.problems), None
    try:
        config = read(found.args)
    except ConfigError as error:
        problems += [found.told(problem) for problem in error.problems]
    if problems or config is None:
        raise ConfigError(problems)
    return config


def read_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None, environ: Mapping[str, str]) -> Layered:
    """Parses a command line; where the command takes a configuration, over what environment and file say.

    Wrong flags end the program as argparse does it. Raises ConfigError where the file cannot be read at all.
    """
    found, _ = parser.parse_known_args(argv)
    parsers: tuple[argparse.ArgumentParser, ...] = getattr(found, "config_parsers", ())
    if not parsers:
        return Layered(parser.parse_args(argv), (), ())
    settings, others = settings_of(*parsers), settings_of(*found.config_passed_over)
    for each in parsers:
        _suppress_defaults(each)
    given = parser.parse_args(argv)
    path = getattr(given, CONFIG_DEST, None) or environ.get(CONFIG_VARIABLE)
    return layered(given, settings, environ, None if path is None else Path(path).expanduser(), others)


def layered(
    given: argparse.Namespace,
    settings: Sequence[Setting],
    environ: Mapping[str, str],
    path: Path | None,
    passed_over: Sequence[Setting] = (),
) -> Layered:
    """What flags, environment and file say together; a value that is not taken counts as not given."""
    problems: list[str] = []
    known = _Known(settings, passed_over)
    layers = [_from_file(known, path, problems), _from_environment(known, environ, problems)]
    args = argparse.Namespace(**vars(given))
    assert not hasattr(args, "layers"), "a flag of this name would be lost"
    setattr(args, CONFIG_DEST, None if path is None else str(path))
    values = []
    for setting in settings:
        value, source = setting.default, "default"
        for layer in layers:
            value, source = layer.get(setting.key, (value, source))
        if hasattr(given, setting.dest):
            value, source = getattr(given, setting.dest), "flag"
        setattr(args, setting.dest, value)
        values.append(Sourced(setting, value, source))
    found = Layered(args, tuple(values), tuple(problems))
    args.layers = found
    return found


_Layer = dict[str, tuple[object, str]]


def _from_file(known: _Known, path: Path | None, problems: list[str]) -> _Layer:
    if path is None:
        return {}
    document, by_key = read_document(path), {setting.key: setting for setting in known.settings}
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        raise ConfigError([f"{path}: must have `key: value` lines, with long flag names as keys"])
    layer: _Layer = {}
    for key, value in document.value.items():
        where, setting = document.where(key), by_key.get(key)
        if setting is None and known.passes_over(key):
            continue
        if setting is None:
            dashed = key.replace("_", "-")
            hint = f"; did you mean {dashed!r}?" if dashed in by_key else nearest(key, by_key)
            problems.append(f"{where}: {key} is not known{hint}")
        elif value is not None:
            _take(layer, setting, partial(setting.from_file, value), (where, f"{where}: {key}"), problems)
    return layer


def _from_environment(known: _Known, environ: Mapping[str, str], problems: list[str]) -> _Layer:
    by_name, layer = {setting.variable: setting for setting in known.settings}, _Layer()
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES or _is_service_link(name, text):
            continue
        setting = by_name.get(name)
        if setting is None and known.passes_over_variable(name):
            continue
        if setting is None:
            problems.append(f"environment: {name} is not known{nearest(name, by_name)}")
        elif text:
            _take(layer, setting, partial(setting.from_text, text), (name, f"environment: {name}"), problems)
    return layer


def _take(
    layer: _Layer, setting: Setting, read: Callable[[], object], told: tuple[str, str], problems: list[str]
) -> None:
    """Reads one value into its layer. `told`: where it is from, and how a problem with it begins."""
    source, beginning = told
    try:
        layer[setting.key] = (read(), source)
    except ValueError as error:
        problems.append(f"{beginning} {_said(error)}")


def _said(error: ValueError) -> str:
    text = str(error)
    return "must be a number" if text.startswith("could not convert") else text


def _is_service_link(name: str, text: str) -> bool:
    """Kubernetes tells pods of services by variables such as `PENSTOCK_PORT=tcp://10.0.0.1:8000`: not meant for us."""
    return _LINK_NAME.search(name) is not None or (name.endswith("_PORT") and _LINK_VALUE.match(text) is not None)


def _suppress_defaults(parser: argparse.ArgumentParser) -> None:
    """From now on the parser tells of settings only what was given."""
    for action in parser._actions:
        if action.dest not in NO_SETTINGS:
            action.default = argparse.SUPPRESS
