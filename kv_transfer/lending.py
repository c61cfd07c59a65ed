"""Which attempts' leases are lent to whom, for transports whose owner serves the reads itself."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from core.ids import AttemptId, NodeId

MAX_LENT = 1 << 14
"""A lease that is released is not revoked, so the oldest are forgotten; generations fence what they named."""


class Lending:
    """The leases that are lent now.

    Owns: who may read which attempt's blocks.
    Invariant: once `revoke` has returned, no `reading` of that lease is open, and none begins.
    """

    def __init__(self) -> None:
        self._lent: OrderedDict[tuple[AttemptId, NodeId], int] = OrderedDict()
        self._changed = threading.Condition()

    def lend(self, attempt: AttemptId, reader: NodeId) -> None:
        """From now on `reader` may read it. Twice is fine."""
        with self._changed:
            self._lent.setdefault((attempt, reader), 0)
            if len(self._lent) > MAX_LENT:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest = next((lease for lease, num_readings in self._lent.items() if not num_readings), None)
        if oldest is not None:
            del self._lent[oldest]

    def revoke(self, attempt: AttemptId, reader: NodeId) -> None:
        """Waits for the piece that is being read now, some milliseconds at most. An unknown lease is fine."""
        with self._changed:
            lease = (attempt, reader)
            self._changed.wait_for(lambda: not self._lent.get(lease, 0))
            self._lent.pop(lease, None)

    def is_lent(self, attempt: AttemptId, reader: NodeId) -> bool:
        """Whether it may be read now."""
        return (attempt, reader) in self._lent

    @contextmanager
    def reading(self, attempt: AttemptId, reader: NodeId) -> Iterator[bool]:
        """Whether the lease may be read; where it may, it stays so within."""
        lease = (attempt, reader)
        with self._changed:
            is_lent = lease in self._lent
            if is_lent:
                self._lent[lease] += 1
        try:
            yield is_lent
        finally:
            if is_lent:
                with self._changed:
                    self._lent[lease] -= 1
                    self._changed.notify_all()
