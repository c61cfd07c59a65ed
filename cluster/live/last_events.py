"""The last events of a machine, for the report of a broken invariant. Payloads are shown by their length only."""

from collections import deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from core.events import Offered, RequestArrived, RequestResumed, Submitted

MAX_EVENTS = 1000
_MAX_SHOWN = 16
_PAYLOAD = frozenset({"token_ids", "token_id", "log"})
_LARGE = (RequestArrived, RequestResumed, Submitted, Offered)


class LastEvents:
    """What a machine was told last.

    Owns: at most `MAX_EVENTS` events and the moments they came.
    """

    def __init__(self, limit: int = MAX_EVENTS) -> None:
        self._events: deque[tuple[float, object]] = deque(maxlen=limit)

    def note(self, event: object, now: float) -> None:
        """Keeps an event, or where it carries a whole prompt only its words; drops the oldest one above the limit."""
        self._events.append((now, redacted(event) if isinstance(event, _LARGE) else event))

    def report(self) -> Iterator[str]:
        """One line an event, the oldest first."""
        for at, event in self._events:
            yield f"{at:.6f} {event if isinstance(event, str) else redacted(event)}"


def redacted(value: object) -> str:
    """A value in words, with what clients sent and got replaced by its length."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, tuple):
        more = f", … {len(value)} in all" if len(value) > _MAX_SHOWN else ""
        return f"({', '.join(redacted(item) for item in value[:_MAX_SHOWN])}{more})"
    if is_dataclass(value) and not isinstance(value, type):
        parts = (f"{f.name}={_field(f.name, getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({', '.join(parts)})"
    return repr(value)


def _field(name: str, value: object) -> str:
    if name in _PAYLOAD:
        return f"<{len(value)}>" if isinstance(value, bytes | tuple) else "<1>"
    return redacted(value)
