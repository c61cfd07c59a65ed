"""Who gives way when blocks run out."""

from collections.abc import Iterable

from decode_worker.batching import DecodeRow

PROTECTED_AFTER = 2
"""A row that has been preempted this often gives way only to rows like itself."""


def next_victim(rows: Iterable[DecodeRow]) -> DecodeRow | None:
    """The youngest row of the lowest class; those preempted too often come last. `rows` are oldest first."""
    victim: DecodeRow | None = None
    for row in rows:
        if row.end is None and (victim is None or _rank(row) <= _rank(victim)):
            victim = row
    return victim


def _rank(row: DecodeRow) -> tuple[bool, int]:
    return row.num_preemptions >= PROTECTED_AFTER, row.request.priority
