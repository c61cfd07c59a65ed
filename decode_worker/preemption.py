"""Who gives way when blocks run out."""

from collections.abc import Iterable

from decode_worker.batching import DecodeRow

PROTECTED_AFTER = 2
"""A row that has given way this often, here or elsewhere, does so again only for rows like itself."""


def next_victim(rows: Iterable[DecodeRow]) -> DecodeRow | None:
    """The youngest running row of the lowest class; those that gave way too often come last, but for the offline class,
    which comes first in any case. `rows` are oldest first.

    A row that comes back keeps its age: it is not next while younger ones of its class run.
    """
    victim: DecodeRow | None = None
    for row in rows:
        if row.is_running and (victim is None or _rank(row) <= _rank(victim)):
            victim = row
    return victim


def _rank(row: DecodeRow) -> tuple[bool, bool, int]:
    is_protected = row.num_preemptions + row.num_saves >= PROTECTED_AFTER
    return not row.request.is_offline, is_protected, row.request.priority
