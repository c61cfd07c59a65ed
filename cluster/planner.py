"""The planner: `python -m cluster.planner` answers what-if questions, one after the other, at the lowest priority.

Questions come over standard input, answers go over standard output; it ends with its input. Its log is standard error.
"""

import logging
import os
import sys

from cluster.codec import decode, encode
from cluster.live.frames import read_frame, write_frame
from cluster.simulated.whatif import answered
from core.whatif import WhatIfAnswered, WhatIfAsked

LOWEST_PRIORITY = 19


def main() -> None:
    """Answers until there is nobody left who asks."""
    os.nice(LOWEST_PRIORITY)
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


def _answer(question: WhatIfAsked) -> WhatIfAnswered:
    """An empty answer where the replay failed: planning goes on without."""
    try:
        return answered(question)
    except Exception:
        logging.getLogger("penstock.planner").exception("a replay failed")
        return WhatIfAnswered(question.ask, ())


if __name__ == "__main__":
    main()
