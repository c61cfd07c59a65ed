"""The inside of an arm's process: answers one line of JSON with another, and keeps its output clean of all else.

Standard library only, and nothing of ours is imported: peers run it in environments of their own.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import TextIO

Answers = Mapping[str, Callable[..., dict[str, object]]]


def take_output() -> TextIO:
    """The process's standard output, for answers only; what is printed from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def serve(output: TextIO, ready: dict[str, object], answers: Answers) -> None:
    """Say `ready`, then answer until the input ends. A failure is an answer, too, and ends nothing."""
    _say(output, ready)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            _say(output, answers[asked.pop("ask")](**asked))
        except Exception as error:
            _say(output, {"failed": f"{type(error).__name__}: {error}"})


def _say(output: TextIO, words: dict[str, object]) -> None:
    output.write(json.dumps(words) + "\n")
    output.flush()
