"""The process in which formats are compiled before a node sees them: what a hostile one can take is its time alone.

Both directions of its pipes carry frames: four bytes of length, then JSON, `[kind, text]` and `[code, text]`.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import IO

from core.errors import Unavailable
from core.request import AnswerFormat, FormatKind
from engine.formats import FormatCompiler, FormatError, explain, read_format
from engine.hf_config import read_model_config

MAX_CPU_S = 0.25
"""Processor time, not the clock's: what is refused does not depend on what else the machine does."""

MAX_MEMORY_BYTES = 2 << 30
ANSWER_TIMEOUT_S = 30.0
MAX_PROBLEM_CHARS = 180


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a format: with an empty `code` its `text` as nodes take it, else `text` says what is wrong."""

    code: str
    text: str


class FormatProcess:
    """Compiles one format at a time. Safe to use from several threads.

    Owns: the process; started with the first format, and again after one that killed it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def check(self, kind: FormatKind, text: str) -> Verdict:
        """Blocks until it is compiled, or is too much. Raises Unavailable where the process does not answer."""
        with self._lock:
            process = self._told([kind.value, text])
            assert process.stdout is not None
            try:
                if not select([process.stdout], [], [], ANSWER_TIMEOUT_S)[0]:
                    raise Unavailable(f"a format was not compiled within {ANSWER_TIMEOUT_S:g} s; this machine is busy")
                return Verdict(*_read(process.stdout))
            except EOFError:
                status = self._end(process)
                _check_killed(status)
                self._running()  # the next one need not wait for all of its start
                return _verdict_of(status)
            except BaseException:
                self._end(process)
                raise

    def close(self) -> None:
        """End the process; no format is checked afterwards."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._end(self._process)

    def _told(self, frame: list[str]) -> "subprocess.Popen[bytes]":
        """A process that has been asked; one that had died before is no fault of the format."""
        while True:
            process = self._running()
            assert process.stdin is not None
            try:
                _write(process.stdin, frame)
                return process
            except BrokenPipeError:
                _check_killed(self._end(process))

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._is_closed:
            raise Unavailable("the server is about to stop and takes no new request", code="draining")
        if self._process is None:
            command = [sys.executable, "-m", "cluster.gateway.format_process", str(self._folder)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        return self._process

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


def _check_killed(status: int) -> None:
    """One that ended by itself could not start, and neither could the next."""
    if status >= 0:
        raise Unavailable("the process that compiles formats does not start; its output says why")


def _verdict_of(status: int) -> Verdict:
    if status == -signal.SIGPROF:
        problem = f"takes more than {MAX_CPU_S:g} s of processor time to compile; make it smaller"
    else:
        problem = "takes too much memory or too many levels to compile; make it smaller"
    return Verdict(FormatError.code, problem)


# ── inside the process ───────────────────────────────────────────────────────────────────────────────────────────────


def main(folder: Path) -> None:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    model = read_model_config(folder)
    compiler = FormatCompiler(folder, model.vocab_size, model.eos_token_ids)
    _load(compiler)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, most))
    answers = os.fdopen(os.dup(1), "wb")
    while True:
        try:
            kind, text = _read(sys.stdin.buffer)
        except EOFError:
            return
        _write(answers, _answer(compiler, FormatKind(kind), text))


def _load(compiler: FormatCompiler) -> None:
    """Outside what a format may take; what is wrong with the vocabulary is told with each format."""
    try:
        compiler.load()
    except FormatError:
        return


def _answer(compiler: FormatCompiler, kind: FormatKind, text: str) -> list[str]:
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)  # SIGPROF, which nobody catches, ends the process
    try:
        wanted = read_format(kind, text)
        compiler.check(wanted)
    except FormatError as error:
        return [error.code, _explained(error, kind, text)[:MAX_PROBLEM_CHARS]]
    except MemoryError:
        return [FormatError.code, "takes too much memory to compile; make it smaller"]
    except BaseException as error:  # a panic of the library is no Exception
        return [FormatError.code, f"cannot be compiled ({type(error).__name__})"]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
    return ["", wanted.text]


def _explained(error: FormatError, kind: FormatKind, text: str) -> str:
    try:
        return explain(error.message, AnswerFormat(kind, text))
    except (ValueError, RecursionError):
        return error.message


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write(pipe: IO[bytes], frame: list[str]) -> None:
    data = json.dumps(frame).encode()
    pipe.write(len(data).to_bytes(4, "little") + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> tuple[str, str]:
    first, second = json.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, 4), "little")))
    return first, second


def _exactly(pipe: IO[bytes], num_bytes: int) -> bytes:
    data = pipe.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data


if __name__ == "__main__":
    main(Path(sys.argv[1]))
