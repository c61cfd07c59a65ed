"""One line of a trace: its fields, checked as they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TypedDict

from core.request import SLO

MAX_LENGTH = 100_000_000


class TraceError(ValueError):
    """A line of a trace that cannot be used; `str` of it names line and field."""

    def __init__(self, line: int, field: str, problem: str) -> None:
        where = f"line {line}, field {field}" if field else f"line {line}"
        super().__init__(f"{where}: {problem}")


class Optional(TypedDict, total=False):
    """The fields of an item that a trace need not have."""

    tenant: str
    priority: int
    offline: bool
    slo: SLO


@dataclass(frozen=True, slots=True)
class Row:
    """The values of a line by field; numbers may stand there as text."""

    line: int
    values: Mapping[str, object]

    def number(self, field: str) -> float:
        """A number from 0 on. Raises TraceError."""
        value = self.values.get(field)
        if value is None or value == "":
            raise TraceError(self.line, field, "is missing")
        if not isinstance(value, int | float | str) or isinstance(value, bool):
            raise TraceError(self.line, field, f"must be a number, not {value!r}")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise TraceError(self.line, field, f"must be a number, not {value!r}") from None
        if not isfinite(number) or number < 0:
            raise TraceError(self.line, field, f"must be a number from 0 on, not {value}")
        return number

    def length(self, field: str) -> int:
        """A whole number of tokens from 0 on. Raises TraceError."""
        number = self.number(field)
        if number != int(number) or number > MAX_LENGTH:
            raise TraceError(self.line, field, f"must be a whole number of tokens, not {self.values[field]}")
        return int(number)

    def optional(self) -> Optional:
        """What of tenant, priority, offline and SLO the line has. Raises TraceError."""
        found: Optional = {}
        if tenant := self.values.get("tenant"):
            found["tenant"] = str(tenant)
        if self._has("priority"):
            found["priority"] = self._priority()
        if self._has("offline"):
            found["offline"] = str(self.values["offline"]).lower() in ("1", "true", "yes")
        if self._has("ttft_s") or self._has("tpot_s"):
            found["slo"] = SLO(self._target("ttft_s"), self._target("tpot_s"))
        return found

    def _has(self, field: str) -> bool:
        return self.values.get(field) not in (None, "")

    def _priority(self) -> int:
        try:
            return int(str(self.values["priority"]))
        except ValueError:
            raise TraceError(self.line, "priority", "must be a whole number") from None

    def _target(self, field: str) -> float:
        target = self.number(field)
        if target == 0:
            raise TraceError(self.line, field, "must be above 0")
        return target
