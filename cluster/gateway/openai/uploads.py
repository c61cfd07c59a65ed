"""A file on its way in: bounded while it comes, never whole in memory."""

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from cluster.batches.config import BatchConfig
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.json_body import MIN_BYTES_PER_S, SLOW_AFTER_S, next_part
from cluster.gateway.openai.multipart import MultipartReader, PartBegun, PartData, PartEnded, PartEvent, boundary_of
from core.errors import RequestError, Unavailable

FILE = "file"
FIELDS = ("purpose",)
MAX_FIELD_BYTES = 1024
MAX_FILENAME_CHARS = 255
OVERHEAD_BYTES = 64 * 1024
"""Of a form beside its file."""

WRITE_BYTES = 1 << 20
DRAINED_BYTES = 8 << 20
"""Of a refused upload so much is taken in and thrown away: most clients hear why before their connection goes."""


@dataclass(slots=True)
class Upload:
    """What has come. Owns: the open file at `path`."""

    path: Path
    config: BatchConfig
    max_line_bytes: int
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    num_bytes: int = 0
    num_lines: int = 0
    line_bytes: int = 0
    _part: PartBegun | None = None
    _waiting: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _file: int = -1

    def open(self) -> None:
        """To be followed by `close`. Raises OSError."""
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def is_heavy(self) -> bool:
        """Whether there is enough to be written."""
        return len(self._waiting) >= WRITE_BYTES

    def write(self) -> None:
        """What waits, on a thread: a disk may be slow. Raises OSError."""
        data, self._waiting = memoryview(bytes(self._waiting)), bytearray()
        while data:
            data = data[os.write(self._file, data) :]

    def finish(self) -> None:
        """All on disk. Raises OSError."""
        self.write()
        os.fsync(self._file)

    def take(self, event: PartEvent) -> None:
        """One event of the form. Raises FieldError where it is more than may be, or something else."""
        match event:
            case PartBegun():
                self._begin(event)
            case PartData(data) if self._is_file:
                self._take_data(data)
            case PartData(data):
                self._value += data
                if len(self._value) > MAX_FIELD_BYTES:
                    raise FieldError(self._name, f"has more than {MAX_FIELD_BYTES} bytes", "invalid_request")
            case PartEnded() if not self._is_file:
                self.fields[self._name] = self._value.decode(errors="replace")

    @property
    def _is_file(self) -> bool:
        return self._name == FILE

    @property
    def _name(self) -> str:
        return "" if self._part is None else self._part.name

    def _begin(self, part: PartBegun) -> None:
        self._part, self._value = part, bytearray()
        if part.name == FILE:
            if self.filename is not None:
                raise FieldError(FILE, "is there twice", "invalid_request")
            self.filename = (part.filename or "upload.jsonl")[-MAX_FILENAME_CHARS:]
        elif part.name not in FIELDS:
            raise FieldError(part.name[:64], "is not a field of this request", "unknown_parameter")
        elif part.name in self.fields:
            raise FieldError(part.name, "is there twice", "invalid_request")

    def _take_data(self, data: bytes) -> None:
        self.num_bytes += len(data)
        if self.num_bytes > self.config.max_file_bytes:
            problem = f"has more than {self.config.max_file_bytes} bytes, the most that is taken"
            raise FieldError(FILE, problem, "body_too_large")
        first, *others = data.split(b"\n")
        self.line_bytes += len(first)
        longest = max(self.line_bytes, *map(len, others)) if others else self.line_bytes
        if longest > self.max_line_bytes:
            problem = f"has a line of more than {self.max_line_bytes} bytes, the most that is taken"
            raise FieldError(FILE, problem, "body_too_large")
        if others:
            self.line_bytes = len(others[-1])
        self.num_lines += len(others)
        if self.num_lines + bool(self.line_bytes) > self.config.max_lines:
            problem = f"has more than {self.config.max_lines} lines, the most that is taken"
            raise FieldError(FILE, problem, "body_too_large")
        self._waiting += data


async def receive_upload(request: Request, upload: Upload) -> None:
    """The whole form, the file's bytes on disk. Raises RequestError, Unavailable."""
    boundary = boundary_of(request.headers.get("content-type", ""))
    if boundary is None:
        raise RequestError("the body must be multipart/form-data (header content-type)", code="unsupported_media_type")
    declared, most = request.headers.get("content-length", "0"), upload.config.max_file_bytes + OVERHEAD_BYTES
    if declared.isdecimal() and int(declared) > most:
        await _drain(request, int(declared) <= most + DRAINED_BYTES)
        raise FieldError(FILE, f"the body has more than {most} bytes, the most that is taken", "body_too_large")
    try:
        await _receive(request, MultipartReader(boundary), upload, most)
    except OSError as error:
        raise Unavailable(f"the file cannot be kept: {error.strerror}") from error


async def _receive(request: Request, reader: MultipartReader, upload: Upload, most: int) -> None:
    upload.open()
    started, taken, more = asyncio.get_running_loop().time(), 0, True
    while more:
        data, more = await next_part(request, started + max(SLOW_AFTER_S, taken / MIN_BYTES_PER_S))
        taken += len(data)
        try:
            if taken > most:
                raise FieldError(FILE, f"the body has more than {most} bytes, the most that is taken", "body_too_large")
            for event in reader.feed(data):
                upload.take(event)
        except FieldError:
            await _drain(request, more)
            raise
        if upload.is_heavy:
            await asyncio.to_thread(upload.write)
    if not reader.is_whole:
        raise FieldError("body", "the form ends before its last delimiter", "invalid_request")
    _check(upload)
    await asyncio.to_thread(upload.finish)


async def _drain(request: Request, more: bool) -> None:
    until, left = asyncio.get_running_loop().time() + SLOW_AFTER_S, DRAINED_BYTES
    with contextlib.suppress(RequestError):
        while more and left > 0:
            data, more = await next_part(request, until)
            left -= len(data)


def _check(upload: Upload) -> None:
    if upload.filename is None:
        raise FieldError(FILE, "is missing", "invalid_request")
    purpose = upload.fields.get("purpose")
    if purpose != "batch":
        problem = "is missing" if purpose is None else f"must be batch, is {echoed(purpose)}"
        raise FieldError("purpose", problem, "invalid_request")
    if not upload.num_bytes:
        raise FieldError(FILE, "is empty", "invalid_request")
