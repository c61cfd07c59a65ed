"""The answers of a batch as they come: lines appended to one file, found again after a crash."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.batches.input_lines import InputLine


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What became of one request: an HTTP status with its JSON body. `code` is that of an error, empty without one.

    `retry_after_s` None: nobody can tell. `is_hopeless`: the same request cannot do better later.
    """

    status: int
    request_id: str
    body: bytes
    code: str = ""
    retry_after_s: float | None = None
    is_hopeless: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether it is an answer."""
        return self.status == 200


class ResultLog:
    """One append-only file of answers. Owns: the file, open while the batch runs, and which lines it answers.

    A line is written by one call and is whole or, after a crash, cut off when the file is opened again: then its
    request is asked once more. Nothing is ever written before it. Not for several threads at once.
    """

    def __init__(self, path: Path, batch: str = "") -> None:
        """Open, or make. What a crash left half written is cut off. Raises OSError."""
        self._prefix = f"batch_req_{batch}_" if batch else "batch_req_"
        self.answered = set[int]()
        self._size = 0
        for number, end in _sound_lines(path, self._prefix):
            self.answered.add(number)
            self._size = end
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)

    def add(self, line: InputLine, answer: LineAnswer) -> None:
        """An answer, or a refusal by its status. Raises OSError; then nothing is left of it."""
        response = b'{"status_code":%d,"request_id":%s,"body":%s}' % (
            answer.status,
            json.dumps(answer.request_id).encode(),
            answer.body,
        )
        self._append(line.number, line.custom_id, response, b"null")

    def add_unasked(self, number: int, custom_id: str, code: str, message: str) -> None:
        """A request that was not asked to its end, and why. Raises OSError."""
        self._append(number, custom_id, b"null", json.dumps({"code": code, "message": message}).encode())

    def sync(self) -> None:
        """On disk when this returns. Raises OSError."""
        os.fsync(self._file)

    def close(self) -> None:
        """Twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, number: int, custom_id: str, response: bytes, error: bytes) -> None:
        assert number not in self.answered, f"line {number} was answered already"
        name, own = json.dumps(f"{self._prefix}{number}").encode(), json.dumps(custom_id).encode()
        data = b'{"id":%s,"custom_id":%s,"response":%s,"error":%s}\n' % (name, own, response, error)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(data)
        self.answered.add(number)


@dataclass(frozen=True, slots=True)
class BatchUsage:
    """Tokens of all answers of a batch."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def usage_in(path: Path) -> BatchUsage:
    """The usage that the answers of a finished log tell. Raises OSError."""
    prompt = cached = output = 0
    with path.open("rb") as file:
        for data in file:
            time.sleep(0)  # whoever streams tokens in this process comes first
            usage = (json.loads(data)["response"] or {}).get("body", {}).get("usage") or {}
            prompt += usage.get("prompt_tokens", usage.get("input_tokens", 0))
            output += usage.get("completion_tokens", usage.get("output_tokens", 0))
            details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
            cached += details.get("cached_tokens") or 0
    return BatchUsage(prompt, cached, output)


def _sound_lines(path: Path, prefix: str) -> Iterator[tuple[int, int]]:
    """The numbers of the requests that a log answers, each with where its line ends, up to the first unsound line."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for data in file:
            time.sleep(0)
            number = _number_in(data, prefix)
            if number is None:
                return
            end += len(data)
            yield number, end


def _number_in(data: bytes, prefix: str) -> int | None:
    """None where this is no whole line of ours."""
    if not data.endswith(b"\n"):
        return None
    try:
        name = json.loads(data)["id"]
    except (ValueError, KeyError, TypeError):
        return None
    digits = name.removeprefix(prefix) if isinstance(name, str) else ""
    return int(digits) if digits.isdecimal() else None
