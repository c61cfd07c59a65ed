"""The trace that a call is part of, by W3C's `traceparent`: set where a call comes in, kept with its ledger."""

import re
from contextvars import ContextVar

TRACEPARENT_KEY = "traceparent"
_VALID = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

TRACEPARENT: ContextVar[str] = ContextVar("penstock.traceparent", default="")
"""Of the call that is served in this context; empty where it named none. Set by the HTTP and the gRPC server."""


def note_traceparent(value: str | None) -> None:
    """Take a header's value in; what is not one of version 00 is no trace, and no error. Source: W3C Trace Context."""
    TRACEPARENT.set(value if value is not None and _VALID.fullmatch(value) else "")
