"""The planner: `python -m cluster.planner` answers what-if questions, one after the other, at the lowest priority.

Questions come over standard input, answers go over standard output; it ends with its input. Its log is standard error.
"""

import contextlib
import logging
import os
import sys
from pathlib import Path

from cluster.codec import decode, encode
from cluster.live.frames import read_frame, write_frame
from cluster.simulated.whatif import answered
from core.whatif import WhatIfAnswered, WhatIfAsked

LOWEST_PRIORITY = 19
AUTOGROUP = Path("/proc/self/autogroup")


def main() -> None:
    """Answers until there is nobody left who asks."""
    take_what_is_left()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
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

    Linux may schedule each session as a group of its own (autogroup); among groups the niceness of a process counts
    nothing, and a planner of niceness 19 took half a core from a node.
    """
    os.nice(LOWEST_PRIORITY)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # no Linux, or one without such groups
            AUTOGROUP.write_text(str(LOWEST_PRIORITY))


def _answer(question: WhatIfAsked) -> WhatIfAnswered:
    """An empty answer where the replay failed: planning goes on without."""
    try:
        return answered(question)
    except Exception:
        logging.getLogger("penstock.planner").exception("a replay failed")
        return WhatIfAnswered(question.ask, ())


if __name__ == "__main__":
    main()
