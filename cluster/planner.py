"""The planner: `python -m cluster.planner` answers what-if questions, one after the other, at the lowest priority.

Questions come over standard input, answers go over standard output; it ends with its input. Its log is standard error.
"""

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

from cluster.codec import decode, encode
from cluster.live.frames import read_frame, write_frame
from cluster.simulated.whatif import answered
from core.whatif import WhatIfAnswered, WhatIfAsked

LOG = logging.getLogger("penstock.planner")
LOWEST_PRIORITY = 19
NUM_TRIES = 10
AUTOGROUP = Path("/proc/self/autogroup")


def main() -> None:
    """Answers until there is nobody left who asks."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    take_what_is_left()
    while True:
        try:
            question = decode(read_frame(sys.stdin.buffer))
        except EOFError:
            return
        assert isinstance(question, WhatIfAsked), f"asked {type(question).__name__}"
        try:
            write_frame(sys.stdout.fileno(), encode(_answer(question)))
        except BrokenPipeError:
            return


def take_what_is_left() -> None:
    """Lowers this process to the lowest priority, and its session with it where it leads one.

    Linux may schedule each session as a group of its own (autogroup), and among groups the niceness of a process counts
    nothing: beside one busy node on a core, niceness alone would leave a replay half of it.
    """
    os.nice(LOWEST_PRIORITY)
    if os.getsid(0) != os.getpid() or not AUTOGROUP.exists():
        return
    try:
        for _ in range(NUM_TRIES):
            with contextlib.suppress(BlockingIOError):  # but for root, one process in a tenth of a second may do this
                AUTOGROUP.write_text(str(LOWEST_PRIORITY))
                return
            time.sleep(0.1)
        LOG.warning("replays may take time from nodes: %s was busy %d times", AUTOGROUP, NUM_TRIES)
    except OSError as error:
        LOG.warning("replays may take time from nodes: %s", error)


def _answer(question: WhatIfAsked) -> WhatIfAnswered:
    """An empty answer where the replay failed: planning goes on without."""
    try:
        return answered(question)
    except Exception:
        LOG.exception("a replay failed")
        return WhatIfAnswered(question.ask, ())


if __name__ == "__main__":
    main()
