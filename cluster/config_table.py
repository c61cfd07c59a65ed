"""The one table of settings: every flag of a command is a setting, with a name in the environment and in the file.

It is read off the command's own parser, so that a flag that is added there is a variable, a key of the file and an
entry of the schema at once.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "PENSTOCK_"
CONFIG_DEST = "config"
NO_SETTINGS = {CONFIG_DEST, "all", "json", argparse.SUPPRESS}
"""What a command may be told beside its settings."""

_NO_FLAGS = (argparse._HelpAction, argparse._SubParsersAction, argparse._VersionAction)
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_WHOLE = re.compile(r"([-+]?\d+)([KMGT]?)")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_SECRET = re.compile(r"(^|-)(key|token|password|secret)$")
_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]+@")
MASK = "********"

Value = None | bool | int | float | str | tuple["Value", ...]
"""A setting's value as people write it; a flag with a parser of its own keeps the text."""


class Kind(StrEnum):
    """What a value is."""

    BOOL = "boolean"
    INT = "integer"
    FLOAT = "number"
    TEXT = "string"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `parse` makes the program's value of a text; None where the text is the value already."""

    key: str
    dest: str
    group: str
    kind: Kind
    default: object
    about: str
    choices: tuple[Value, ...] = ()
    is_list: bool = False
    is_path: bool = False
    parse: Callable[[str], object] | None = None

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.key.replace("-", "_").upper()

    @property
    def is_secret(self) -> bool:
        """Whether its value is never shown. Paths of files are no secrets."""
        return not self.is_path and _SECRET.search(self.key) is not None

    def shown(self, value: object) -> object:
        """A value fit to be printed: secrets are masked, and so are credentials inside addresses."""
        if value is None:
            return None
        if self.is_secret:
            return MASK
        if isinstance(value, str):
            return _CREDENTIALS.sub(rf"\1{MASK}@", value)
        return [self.shown(item) for item in value] if isinstance(value, list | tuple) else value

    def from_text(self, text: str) -> object:
        """The value of an environment variable. Raises ValueError, saying what it must be."""
        if self.is_list:
            return [self._checked(self._of_text(item)) for item in re.split(r"[\s,]+", text.strip()) if item]
        return self._checked(self._of_text(text))

    def from_file(self, value: object) -> object:
        """The value of a key of a file. Raises ValueError, saying what it must be."""
        if self.is_list:
            if not isinstance(value, list):
                raise ValueError("must be a list")
            return [self._checked(self._of_plain(item)) for item in value]
        return self._checked(self._of_plain(value))

    def _of_text(self, text: str) -> object:
        match self.kind:
            case Kind.BOOL:
                return truth(text)
            case Kind.INT:
                return whole_number(text)
            case Kind.FLOAT:
                return float(text)
        return text if self.parse is None else self._parsed(text)

    def _of_plain(self, value: object) -> object:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        match self.kind:
            case Kind.BOOL if isinstance(value, bool):
                return value
            case Kind.INT if isinstance(value, int) and is_number:
                return value
            case Kind.INT if isinstance(value, str):
                return whole_number(value)
            case Kind.FLOAT if isinstance(value, int | float) and is_number:
                return float(value)
            case Kind.TEXT if isinstance(value, str):
                return value if self.parse is None else self._parsed(value)
            case Kind.TEXT if is_number and self.parse is not None:
                return self._parsed(str(value))
        quote = "; put it in quotes" if self.kind is Kind.TEXT and not isinstance(value, dict | list) else ""
        raise ValueError(f"must be a {self.kind.value}{quote}")

    def _parsed(self, text: str) -> object:
        assert self.parse is not None
        try:
            return self.parse(text)
        except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
            raise ValueError(f"is not taken: {error}") from error

    def _checked(self, value: object) -> object:
        if self.choices and value not in self.choices:
            raise ValueError(f"must be one of {', '.join(map(str, self.choices))}")
        return value


def whole_number(text: str) -> int:
    """A whole number, with K, M, G or T behind it times 1024, 1024², … Raises ValueError."""
    found = _WHOLE.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be a whole number, such as 64 or 16K")
    return int(found[1]) * _SUFFIXES[found[2]]


def truth(text: str) -> bool:
    """A truth value as people write it. Raises ValueError."""
    word = text.strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise ValueError("must be true or false")
    return word in _TRUE


def settings_of(*parsers: argparse.ArgumentParser) -> tuple[Setting, ...]:
    """The settings of a command: those of its own parser, after those of the parsers that it is under."""
    return tuple(setting for parser in parsers for setting in _settings(parser))


def _settings(parser: argparse.ArgumentParser) -> Iterator[Setting]:
    for group in parser._action_groups:
        for action in group._group_actions:
            if not isinstance(action, _NO_FLAGS) and action.dest not in NO_SETTINGS:
                yield _setting(action, group.title or "")


def _setting(action: argparse.Action, group: str) -> Setting:
    is_bool = isinstance(action, argparse._StoreTrueAction | argparse.BooleanOptionalAction)
    names = [name for name in action.option_strings if name.startswith("--")]
    kind, parse = (Kind.BOOL, None) if is_bool else _kind(action.type)
    return Setting(
        key=names[0][2:] if names else action.dest.replace("_", "-"),
        dest=action.dest,
        group="general" if group in ("options", "positional arguments") else group,
        kind=kind,
        default=action.default,
        about=re.sub(rf" \[{PREFIX}\w+\]$", "", action.help or ""),
        choices=tuple(action.choices or ()),
        is_list=action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction),
        is_path=action.metavar == "FILE",
        parse=parse,
    )


def _kind(of: object) -> tuple[Kind, Callable[[str], object] | None]:
    if of in (int, whole_number):
        return Kind.INT, None
    if of is float:
        return Kind.FLOAT, None
    if of in (None, str):
        return Kind.TEXT, None
    assert callable(of)
    return Kind.TEXT, of


def add_config_flag(
    parser: argparse.ArgumentParser,
    above: Sequence[argparse.ArgumentParser],
    passed_over: Sequence[argparse.ArgumentParser] = (),
) -> None:
    """Lets a command read a file and the environment; to be called after all its flags were added.

    Whole numbers may have a suffix from then on, and each flag's help names its variable. Settings of `passed_over`
    may stand there, too, for another command of the same file: they are not looked at.
    """
    parser.add_argument(
        "--config",
        default=None,
        metavar="FILE",
        help=f"YAML with long flag names as keys; flags win over the environment, it over the file [{PREFIX}CONFIG]",
    )
    for setting in settings_of(parser):
        action = next(each for each in parser._actions if each.dest == setting.dest)
        if action.type is int:
            action.type = whole_number
        if action.help is not argparse.SUPPRESS:
            action.help = f"{action.help or ''} [{setting.variable}]".strip()
    parser.set_defaults(config_parsers=(*above, parser), config_passed_over=tuple(passed_over))
