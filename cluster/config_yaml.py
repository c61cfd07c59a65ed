"""YAML that a person wrote, read strictly: every value with its line, no name twice, no anchors, no surprises.

Only `true` and `false` are booleans (`on` and `off` are words), dates stay text, and JSON is taken as well.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from core.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_TOLD = 20

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True, slots=True)
class Document:
    """A file's content. `lines` has the line of every value by its path, such as `keys[0].tenant`."""

    path: Path
    value: Plain
    lines: Mapping[str, int]

    def where(self, at: str) -> str:
        """File and line of a value, or of the nearest one around it."""
        while at and at not in self.lines:
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        return f"{self.path}, line {self.lines.get(at, 1)}"


def read_document(path: Path) -> Document:
    """Reads a file. Raises ConfigError where it cannot be read, is no YAML, or has a name twice."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"{path} has {len(data)} bytes, at most {MAX_FILE_BYTES} are taken"])
    loader: _Loader | None = None
    try:
        loader = _Loader(data.decode())
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        problems = [] if node is None else list(_walk(node, "", 1, _Walked(lines)))
        if problems:
            raise ConfigError([f"{path}, {problem}" for problem in problems])
        value: Plain = None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path} is not UTF-8"]) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError([f"{path} is not YAML: {' '.join(str(error).split())}"]) from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(path, value, lines)


def nearest(word: str, words: Iterable[str]) -> str:
    """What to say behind a word that is not known: the one that was perhaps meant, else those that there are."""
    known = tuple(words)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if found:
        return f"; did you mean {found[0]!r}?"
    return f"; there are {', '.join(known)}" if len(known) <= MAX_TOLD else ""


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2's core schema: 1.1 reads `off` as false and 1:30 as ninety."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as the library has it


_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+0123456789."),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), [c for c in _first if c != "\0"] + [""])


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)))


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


@dataclass(frozen=True, slots=True)
class _Walked:
    """What was found of a file so far: the lines of its values, and the nodes themselves."""

    lines: dict[str, int]
    nodes: set[int] = field(default_factory=set)


def _walk(node: yaml.Node, at: str, line: int, walked: _Walked) -> Iterator[str]:
    """Notes the lines of all values; what is wrong with them."""
    walked.lines[at] = line
    if id(node) in walked.nodes:
        yield f"line {line}: {at or 'the file'}: anchors and aliases are not taken"
        return
    walked.nodes.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, f"{at}[{index}]", item.start_mark.line + 1, walked)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            path, line = f"{at}.{name}" if at else name, key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield f"line {line}: {path}: a name must be plain text"
            elif name in names:
                yield f"line {line}: {path} stands there twice"
            else:
                key.tag = "tag:yaml.org,2002:str"
            names.add(name)
            yield from _walk(value, path, line, walked)
