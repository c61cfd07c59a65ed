"""The table of settings as a JSON Schema, and as a file to start from."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

from cluster.config_bounds import BOUNDS, NO_BOUND
from cluster.config_table import Kind, Setting, Value

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
WHOLE_WITH_SUFFIX = r"^[-+]?[0-9]+[KMGT]?$"
TEXT_WIDTH = 100


def schema_of(settings: Iterable[Setting]) -> dict[str, Json]:
    """What a configuration file may have: nothing else, each of its type and within its own bounds."""
    properties: dict[str, Json] = {setting.key: _property(setting) for setting in settings}
    return {
        "$schema": DRAFT,
        "title": "Penstock",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def starting_file(settings: Sequence[Setting]) -> Iterator[str]:
    """Lines of a file that has every setting with its default, all of them commented out."""
    for group, members in groupby(sorted(settings, key=lambda setting: setting.group), key=lambda it: it.group):
        yield f"# ── {group} " + "─" * max(0, TEXT_WIDTH - len(group) - 6)
        for setting in members:
            yield from _commented(setting)
        yield ""


def _commented(setting: Setting) -> Iterator[str]:
    choices = f" ({', '.join(map(str, setting.choices))})" if setting.choices else ""
    yield f"# {' '.join((setting.about or setting.key).split())}{choices}"
    yield f"#{setting.key}: {json.dumps(_portable(setting))}"


def _property(setting: Setting) -> dict[str, Json]:
    one = _type(setting) | _bounds(setting)
    schema: dict[str, Json] = {"type": ["array", "null"], "items": one} if setting.is_list else _or_null(one)
    if setting.about:
        schema["description"] = setting.about
    default = _portable(setting)
    if default is not None:
        schema["default"] = default
    return schema


def _portable(setting: Setting) -> Json:
    """The default; None where there is none, where it is a secret, and where it is a place of this installation."""
    default = _plain(setting.default)
    is_here = isinstance(default, str) and Path(default).is_absolute()
    return None if setting.is_secret or is_here else default


def _type(setting: Setting) -> dict[str, Json]:
    if setting.choices:
        return {"enum": [_plain(choice) for choice in setting.choices]}
    if setting.kind is Kind.INT:
        return {"type": ["integer", "string"], "pattern": WHOLE_WITH_SUFFIX}
    if setting.kind is Kind.TEXT and setting.parse is not None:
        return {"type": ["string", "number"]}
    return {"type": setting.kind.value}


def _bounds(setting: Setting) -> dict[str, Json]:
    """They say nothing of whole numbers with a suffix, which are text to a schema."""
    bound = BOUNDS.get(setting.key, NO_BOUND)
    told = {"minimum": bound.least, "maximum": bound.most, "exclusiveMinimum": bound.above}
    return {name: value for name, value in told.items() if value is not None}


def _or_null(one: dict[str, Json]) -> dict[str, Json]:
    """An empty value is the default."""
    if "enum" in one:
        choices = one["enum"]
        assert isinstance(choices, list)
        return {"enum": [*choices, None]}
    kinds = one["type"]
    return one | {"type": [*(kinds if isinstance(kinds, list) else [kinds]), "null"]}


def _plain(value: Value | object) -> Json:
    """A value as JSON has it; what a flag's own parser made is told by its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else str(value)
