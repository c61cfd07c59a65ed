"""A process that answers one question at a time, and dies of one that takes too much: nobody else notices.

Both directions of its pipes carry frames: four bytes of length, then bytes that the two sides understand.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from select import select
from typing import IO

from core.errors import Unavailable

MAX_CPU_S = 0.25
"""Processor time, not the clock's: what is refused does not depend on what else the machine does."""

ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Died:
    """The process ended of a question: by its time, else by what it took of memory or stack."""

    is_out_of_time: bool


@dataclass(frozen=True, slots=True)
class Program:
    """What runs in the process: a module that calls `answer_frames`, its arguments, and a frame that it reads first.

    `task` says in messages what it does, as `compiles formats`.
    """

    module: str
    task: str
    arguments: Sequence[str] = ()
    first: bytes | None = None


class Confined:
    """The process, seen from outside. Safe to use from several threads.

    Owns: the process; started with the first question, and again after one that killed it.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Start it before the first question, which then need not wait for that. Raises Unavailable."""
        with self._lock:
            self._running()

    def ask(self, frame: bytes) -> bytes | Died:
        """Blocks until there is an answer, or the process has died of the question. Raises Unavailable."""
        with self._lock:
            process = self._told(frame)
            assert process.stdout is not None
            try:
                if not select([process.stdout], [], [], ANSWER_TIMEOUT_S)[0]:
                    raise Unavailable(
                        f"the process that {self._program.task} did not answer within {ANSWER_TIMEOUT_S:g} s; "
                        "this machine is busy"
                    )
                return _read(process.stdout)
            except EOFError:
                status = self._end(process)
                self._check_killed(status)
                self._running()  # the next one need not wait for all of its start
                return Died(status == -signal.SIGPROF)
            except BaseException:
                self._end(process)
                raise

    def close(self) -> None:
        """End the process; no question is asked afterwards. Twice is fine."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._end(self._process)

    def _told(self, frame: bytes) -> "subprocess.Popen[bytes]":
        """A process that has been asked; one that had died before is no fault of the question."""
        while True:
            process = self._running()
            assert process.stdin is not None
            try:
                _write(process.stdin, frame)
                return process
            except BrokenPipeError:
                self._check_killed(self._end(process))

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._is_closed:
            raise Unavailable("the server is about to stop and takes no new request", code="draining")
        if self._process is None:
            self._process = self._started()
        return self._process

    def _started(self) -> "subprocess.Popen[bytes]":
        program = self._program
        command = [sys.executable, "-m", program.module, *program.arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        if program.first is not None:
            try:
                _write(process.stdin, program.first)
            except BrokenPipeError:
                self._check_killed(self._end(process))
        return process

    def _end(self, process: "subprocess.Popen[bytes]") -> int:
        """Its exit status; killed, unless it is dead already."""
        self._process = None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # of what was not written
                    pipe.close()
        try:
            status = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        return status

    def _check_killed(self, status: int) -> None:
        """One that ended by itself could not start, and neither could the next."""
        if status >= 0:
            raise Unavailable(f"the process that {self._program.task} does not start; its output says why")


# ── inside the process ───────────────────────────────────────────────────────────────────────────────────────────────


def first_frame() -> bytes:
    """What the process is told before any question. Raises EOFError where nobody tells it."""
    return _read(sys.stdin.buffer)


def answer_frames(answer: Callable[[bytes], bytes], max_memory_bytes: int) -> None:
    """Answer until nobody asks any more; from now on with so much memory, and `MAX_CPU_S` for each answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, most))
    answers = os.fdopen(os.dup(1), "wb")
    while True:
        try:
            asked = _read(sys.stdin.buffer)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)  # SIGPROF, which nobody catches, ends the process
        try:
            told = answer(asked)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
        _write(answers, told)


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(4, "little") + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    return _exactly(pipe, int.from_bytes(_exactly(pipe, 4), "little"))


def _exactly(pipe: IO[bytes], num_bytes: int) -> bytes:
    data = pipe.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data
