"""Arms as processes: one at a time works while the others wait for their next line and take no time."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import PenstockError

ROOT = Path(__file__).resolve().parents[2]
SHOWN_LINES = 8


class ArmFailed(PenstockError):
    """An arm's process could not do what it was asked."""

    code = "bench_arm_failed"


@dataclass(frozen=True, slots=True)
class ArmOrder:
    """How an arm is started: `arguments` after the interpreter. `python` is another environment's, or None: our own."""

    name: str
    arguments: tuple[str, ...]
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Arm:
    """A running arm. Owns: its process, and the file that its other output goes to."""

    def __init__(self, order: ArmOrder, num_threads: int) -> None:
        self.name = order.name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(num_threads)} | dict(order.environment)
        self._process = subprocess.Popen(
            [order.python or sys.executable, *order.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, what: str, **words: object) -> dict[str, object]:
        """One question, one answer. Raises ArmFailed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"ask": what, **words}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ArmFailed(f"{self.name} is gone: {self._last_words()}") from error
        return self._answer()

    def close(self) -> None:
        """End it, gently where it listens. Twice is fine."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ArmFailed(f"{self.name} ended: {self._last_words()}")
        answer: dict[str, object] = json.loads(line)
        if "failed" in answer:
            raise ArmFailed(f"{self.name}: {answer['failed']}")
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        return " | ".join(self._log.read().splitlines()[-SHOWN_LINES:])


@contextmanager
def arms_of(orders: Sequence[ArmOrder], num_threads: int) -> Iterator[tuple[dict[str, Arm], dict[str, str]]]:
    """The arms that could be started, one after the other, by name; and why the others could not."""
    running: dict[str, Arm] = {}
    absent: dict[str, str] = {}
    try:
        for order in orders:
            try:
                running[order.name] = Arm(order, num_threads)
            except (ArmFailed, OSError) as error:
                absent[order.name] = str(error)
        yield running, absent
    finally:
        for arm in running.values():
            arm.close()


def alternated(names: Sequence[str], repeat: int) -> list[str]:
    """The order of the arms in a repeat: ABBA over two of them."""
    return list(names) if repeat % 2 == 0 else list(reversed(names))
