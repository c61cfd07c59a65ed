"""Trace files: what kind one is is seen from its content. Every problem is a ConfigError that names line and field.

Native is the Mooncake form: one JSON object per line with `timestamp` in ms, `input_length`, `output_length`, and
`hash_ids` for the prefix. Our own optional fields beside: `tenant`, `priority`, `offline`, `ttft_s`, `tpot_s`. CSV
files are known by their columns (`cluster.workload.columns`).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

from cluster.workload.columns import items_of_csv
from cluster.workload.fields import Row, TraceError
from cluster.workload.items import BLOCK_TOKENS, WorkItem, Workload
from core.errors import ConfigError

COARSE_S = 1.0
"""Stamps that only advance in steps of at least this, with most requests sharing theirs, are a clock's doing."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A file as a workload, and what was done to it, in words."""

    workload: Workload
    notes: tuple[str, ...]


def read_trace(path: Path, *, block_tokens: int = BLOCK_TOKENS, keep_stamps: bool = False) -> Trace:
    """Read a trace file; its first request comes at 0.

    Requests that share a coarse stamp (Mooncake's advance in steps of 3 s) are spread evenly over its step unless
    `keep_stamps`. Lengths of 0 become 1. Raises ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read as a trace: {error}"]) from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError([f"{path}: is empty, so it is no trace"])
    try:
        is_json = lines[0][1].lstrip().startswith("{")
        items = list(_items_of_json(lines, block_tokens) if is_json else items_of_csv(lines))
        _check_order(lines if is_json else lines[1:], items)
    except TraceError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    items, notes = _settled(items, keep_stamps)
    return Trace(Workload(path.stem, tuple(items), block_tokens), tuple(notes))


def write_trace(path: Path, workload: Workload) -> None:
    """Write a workload in the native form. Raises ConfigError where the file cannot be written."""
    try:
        path.write_text("".join(json.dumps(_as_json(item)) + "\n" for item in workload.items))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error}"]) from error


def _items_of_json(lines: Iterable[tuple[int, str]], block_tokens: int) -> Iterator[WorkItem]:
    for number, line in lines:
        try:
            raw = json.loads(line)
        except ValueError as error:
            raise TraceError(number, "", f"is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise TraceError(number, "", "is not a JSON object")
        row = Row(number, raw)
        prompt = row.length("input_length")
        yield WorkItem(
            row.number("timestamp") / 1000,
            prompt,
            row.length("output_length"),
            _block_ids(row, prompt, block_tokens),
            **row.optional(),
        )


def _block_ids(row: Row, prompt: int, block_tokens: int) -> tuple[int, ...]:
    ids = row.values.get("hash_ids", [])
    if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
        raise TraceError(row.line, "hash_ids", "must be a list of whole numbers from 0 on")
    if ids and len(ids) != -(-prompt // block_tokens):
        text = f"has {len(ids)} blocks, but {prompt} tokens fill {-(-prompt // block_tokens)} of {block_tokens} tokens"
        raise TraceError(row.line, "hash_ids", f"{text} (other block sizes: block=N)")
    return tuple(ids)


def _check_order(lines: list[tuple[int, str]], items: list[WorkItem]) -> None:
    for place in range(1, len(items)):
        if items[place].at_s < items[place - 1].at_s:
            raise TraceError(lines[place][0], "time", "is earlier than the line before; sort the file by time")


def _settled(items: list[WorkItem], keep_stamps: bool) -> tuple[list[WorkItem], list[str]]:
    notes, first_s = list[str](), items[0].at_s
    num_zero = sum(not item.prompt_tokens or not item.output_tokens for item in items)
    if num_zero:
        notes.append(f"{num_zero} requests have a length of 0, taken as 1")
    items = [
        replace(
            item,
            at_s=item.at_s - first_s,
            prompt_tokens=max(1, item.prompt_tokens),
            output_tokens=max(1, item.output_tokens),
        )
        for item in items
    ]
    step_s = _coarse_step_s(items)
    if step_s is not None and not keep_stamps:
        items = list(_spread(items, step_s))
        notes.append(f"stamps advance in steps of {step_s:.2g} s: requests are spread evenly within their step")
    elif step_s is not None:
        notes.append(f"stamps advance in steps of {step_s:.2g} s: requests of one step come at once")
    return items, notes


def _coarse_step_s(items: list[WorkItem]) -> float | None:
    stamps = sorted({item.at_s for item in items})
    if len(stamps) < 2 or 2 * len(stamps) > len(items):
        return None
    step_s = min(later - earlier for earlier, later in pairwise(stamps))
    return step_s if step_s >= COARSE_S else None


def _spread(items: list[WorkItem], step_s: float) -> Iterator[WorkItem]:
    for at_s, group in groupby(items, key=lambda item: item.at_s):
        together = list(group)
        for place, item in enumerate(together):
            yield replace(item, at_s=at_s + step_s * place / len(together))


def _as_json(item: WorkItem) -> dict[str, object]:
    at_ms = round(item.at_s * 1000, 3)
    written: dict[str, object] = {
        "timestamp": int(at_ms) if at_ms == int(at_ms) else at_ms,
        "input_length": item.prompt_tokens,
        "output_length": item.output_tokens,
    }
    if item.block_ids:
        written["hash_ids"] = list(item.block_ids)
    for name, value in (("tenant", item.tenant), ("priority", item.priority), ("offline", item.offline)):
        if value:
            written[name] = value
    if item.slo is not None:
        written |= {"ttft_s": item.slo.ttft_s, "tpot_s": item.slo.tpot_s}
    return written
