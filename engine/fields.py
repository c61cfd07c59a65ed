"""Typed reading of the JSON objects that a model folder holds. Imports no torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from core.errors import ConfigError

Json = dict[str, object]


class Fields:
    """Typed reading of one JSON object; a key that is absent or null takes the default.

    Owns: nothing; problems go to the list that all readers of one folder share.
    """

    def __init__(self, data: Mapping[str, object], where: str, problems: list[str]) -> None:
        self.data = data
        self.where = where
        self.problems = problems

    def problem(self, text: str) -> None:
        """Note what is wrong, with the place it was found in."""
        self.problems.append(f"{self.where}: {text}")

    def part(self, data: Mapping[str, object], name: str) -> "Fields":
        """A reader of an inner object, whose problems join these."""
        return Fields(data, f"{self.where}: {name}", self.problems)

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.problem(f"{key} must be a positive integer, got {value!r}")
        return 1

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        if _is_number(value) and value > 0:
            return float(value)
        self.problem(f"{key} must be a positive number, got {value!r}")
        return 1.0

    def optional_number(self, key: str) -> float | None:
        """A positive, finite number, or None where there is none."""
        return None if self.data.get(key) is None else self.number(key)

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of so many positive, finite numbers."""
        value = self.data.get(key)
        if isinstance(value, list) and len(value) == length and all(_is_number(each) and each > 0 for each in value):
            return tuple(map(float, value))
        found = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
        self.problem(f"{key} must be a list of {length} positive numbers, got {found}")
        return (1.0,) * length

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.data.get(key)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self.problem(f"{key} must be true or false, got {value!r}")
        return default


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: Path) -> Json:
    """A JSON object from a file. Raises ConfigError naming the file when it is missing, unreadable or not an object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError([f"{path} does not exist; a model folder needs it, as save_pretrained writes it"]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path} cannot be read as JSON: {error}; fetch the file again"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{path} must hold a JSON object, found {type(data).__name__}; fetch the file again"])
    return data
