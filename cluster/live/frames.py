"""Messages over a pipe: a length of four bytes, then that many."""

import os
from typing import Protocol

MAX_FRAME_BYTES = 1 << 20


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def write_frame(fd: int, message: bytes) -> None:
    """Writes one message whole. Raises BrokenPipeError where nobody reads any more."""
    left = memoryview(len(message).to_bytes(4, "little") + message)
    while left:
        left = left[os.write(fd, left) :]


def read_frame(reader: _Reader) -> bytes:
    """The next message. Raises EOFError where the pipe ends first, ValueError above `MAX_FRAME_BYTES`."""
    return _read_exactly(reader, frame_length(_read_exactly(reader, 4)))


def frame_length(head: bytes) -> int:
    """How many bytes follow these four. Raises ValueError above `MAX_FRAME_BYTES`."""
    length = int.from_bytes(head, "little")
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
    return length


def _read_exactly(reader: _Reader, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = reader.read(size - len(parts))
        if not part:
            raise EOFError("the pipe ended within a message")
        parts += part
    return parts
