"""Waiting for work that goes on elsewhere, with a limit, and without holding a core for long."""

import time
from collections.abc import Callable, Iterator

from kv_transfer.device import DeviceFailed, Stream

SPIN_S = 200e-6
"""As long as a small copy takes: asked again and again, each time letting other threads run."""

NAP_S = 100e-6


def naps() -> Iterator[float]:
    """Seconds waited so far, between one look and the next; the first look comes at once."""
    start = time.monotonic()
    while True:
        waited = time.monotonic() - start
        yield waited
        time.sleep(0 if waited < SPIN_S else NAP_S)


def wait_until(is_done: Callable[[], bool], limit_s: float) -> bool:
    """Whether it was done within the limit."""
    for waited in naps():
        if is_done():
            return True
        if waited > limit_s:
            return False
    raise AssertionError("naps never end")


def wait_for(stream: Stream, limit_s: float) -> None:
    """Until the stream has run all that was queued. Raises DeviceFailed, after the limit too."""
    if not wait_until(stream.is_done, limit_s):
        raise DeviceFailed(f"the device has not finished within {limit_s:g} s")
