"""CSV traces: Azure's, AIBrix's, and others whose columns say the same in other words."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from cluster.workload.fields import Row, TraceError
from cluster.workload.items import WorkItem

TIMES = {
    "timestamp_ms": 0.001,
    "at_s": 1.0,
    "timestamp_s": 1.0,
    "timestamp": 1.0,  # also a date and time
    "arrived_at": 1.0,
    "arrival_timestamp": 1.0,
    "arrival_time": 1.0,
}
"""Columns of time, in lower case, with the seconds of their unit: Azure, AIBrix, BurstGPT, Vidur, splitwise-sim."""

PROMPTS = ("prompt_tokens", "contexttokens", "input_length", "request tokens", "num_prefill_tokens", "prompt_size")
OUTPUTS = ("output_tokens", "generatedtokens", "output_length", "response tokens", "num_decode_tokens", "token_size")
_OPTIONAL = ("tenant", "priority", "offline", "ttft_s", "tpot_s")


class _Columns(NamedTuple):
    time: str
    prompt: str
    output: str


def items_of_csv(lines: Sequence[tuple[int, str]]) -> Iterator[WorkItem]:
    """Items of numbered lines, the first of which names the columns. Raises TraceError."""
    (first, header), *body = lines
    names = [name.strip() for name in next(csv.reader([header]))]
    columns = _columns(first, names)
    if not body:
        raise TraceError(first, "", "is the only one: there is no request")
    for line, text in body:
        cells = next(csv.reader([text]))
        if len(cells) != len(names):
            raise TraceError(line, "", f"has {len(cells)} fields, the header {len(names)}")
        row = Row(line, dict(zip(names, (cell.strip() for cell in cells), strict=True)))
        lower = Row(line, {name.lower(): row.values[name] for name in names if name.lower() in _OPTIONAL})
        yield WorkItem(
            _time(row, columns.time), row.length(columns.prompt), row.length(columns.output), **lower.optional()
        )


def _columns(line: int, names: Sequence[str]) -> _Columns:
    return _Columns(
        _named(line, names, "time", TIMES),
        _named(line, names, "prompt", PROMPTS),
        _named(line, names, "output", OUTPUTS),
    )


def _named(line: int, names: Sequence[str], what: str, known: Iterable[str]) -> str:
    known = tuple(known)
    for name in names:
        if name.lower() in known:
            return name
    raise TraceError(line, what, f"is missing: none of the columns {', '.join(names)} is one of {', '.join(known)}")


def _time(row: Row, field: str) -> float:
    text = str(row.values[field])
    if "-" in text[1:] and ":" in text:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise TraceError(row.line, field, f"must be a date and time, not {text!r}") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return row.number(field) * TIMES[field.lower()]
