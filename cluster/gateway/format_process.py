"""The process in which formats are compiled before a node sees them.

Its frames are JSON: `[kind, text]` to it, `[code, text]` back.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.gateway.confined import MAX_CPU_S, Confined, Died, Program, answer_frames
from core.request import AnswerFormat, FormatKind
from engine.formats import FormatCompiler, FormatError, explain, read_format
from engine.hf_config import read_model_config

MAX_MEMORY_BYTES = 2 << 30
MAX_PROBLEM_CHARS = 180


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a format: with an empty `code` its `text` as nodes take it, else `text` says what is wrong."""

    code: str
    text: str


class FormatProcess:
    """Compiles one format at a time. Safe to use from several threads. Owns: the process."""

    def __init__(self, folder: Path) -> None:
        self._confined = Confined(Program("cluster.gateway.format_process", "compiles formats", (str(folder),)))

    def check(self, kind: FormatKind, text: str) -> Verdict:
        """Blocks until it is compiled, or is too much. Raises Unavailable where the process does not answer."""
        told = self._confined.ask(json.dumps([kind.value, text]).encode())
        return _verdict_of(told) if isinstance(told, Died) else Verdict(*json.loads(told))

    def close(self) -> None:
        """End the process; no format is checked afterwards."""
        self._confined.close()


def _verdict_of(death: Died) -> Verdict:
    if death.is_out_of_time:
        problem = f"takes more than {MAX_CPU_S:g} s of processor time to compile; make it smaller"
    else:
        problem = "takes too much memory or too many levels to compile; make it smaller"
    return Verdict(FormatError.code, problem)


# ── inside the process ───────────────────────────────────────────────────────────────────────────────────────────────


def main(folder: Path) -> None:
    """Answer until nobody asks any more."""
    model = read_model_config(folder)
    compiler = FormatCompiler(folder, model.vocab_size, model.eos_token_ids)
    _load(compiler)

    def answer(frame: bytes) -> bytes:
        kind, text = json.loads(frame)
        return json.dumps(_answer(compiler, FormatKind(kind), text)).encode()

    answer_frames(answer, MAX_MEMORY_BYTES)


def _load(compiler: FormatCompiler) -> None:
    """Outside what a format may take; what is wrong with the vocabulary is told with each format."""
    try:
        compiler.load()
    except FormatError:
        return


def _answer(compiler: FormatCompiler, kind: FormatKind, text: str) -> list[str]:
    try:
        wanted = read_format(kind, text)
        compiler.check(wanted)
    except FormatError as error:
        return [error.code, _explained(error, kind, text)[:MAX_PROBLEM_CHARS]]
    except MemoryError:
        return [FormatError.code, "takes too much memory to compile; make it smaller"]
    except BaseException as error:  # a panic of the library is no Exception
        return [FormatError.code, f"cannot be compiled ({type(error).__name__})"]
    return ["", wanted.text]


def _explained(error: FormatError, kind: FormatKind, text: str) -> str:
    try:
        return explain(error.message, AnswerFormat(kind, text))
    except (ValueError, RecursionError):
        return error.message


if __name__ == "__main__":
    main(Path(sys.argv[1]))
