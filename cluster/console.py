"""What the command line prints while it works: progress of starting nodes, and errors that name the next command."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from core.errors import ConfigError, PenstockError

PIPED_WIDTH = 118
"""Columns of a table where there is no terminal to ask."""

OUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)

NEXT_COMMAND = "penstock doctor"


class StartProgress:
    """One line per starting node: what it does and how far it is. A context manager; `report` is its `OnProgress`."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[slot]:<14}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=ERR,
            disable=not ERR.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def report(self, slot: str, phase: str, share: float) -> None:
        """A node has come this far."""
        if slot not in self._tasks:
            self._tasks[slot] = self._progress.add_task(phase, total=1.0, slot=slot)
        self._progress.update(self._tasks[slot], description=phase, completed=share)

    def __enter__(self) -> "StartProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks.values():
            self._progress.update(task, completed=1.0)
        self._progress.stop()


def print_error(error: PenstockError) -> None:
    """What went wrong, one line per problem, and what to do next."""
    problems = error.problems if isinstance(error, ConfigError) else (error.message,)
    for problem in problems:
        print(f"penstock: error ({error.code}): {problem}", file=sys.stderr)
    if isinstance(error, ConfigError):
        print(f"penstock: next: mend what is named above, or run `{NEXT_COMMAND}`", file=sys.stderr)
