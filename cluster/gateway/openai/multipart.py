"""Bodies of multipart/form-data, taken apart as they come: what an upload is, in pieces of any size."""

from dataclasses import dataclass
from email.message import Message
from enum import StrEnum

from cluster.gateway.errors_wire import FieldError, echoed

MAX_PART_HEAD_BYTES = 8 * 1024
MAX_PARTS = 16
MAX_BOUNDARY_CHARS = 70
"""RFC 2046, section 5.1.1."""

FIELD = "body"


@dataclass(frozen=True, slots=True)
class PartBegun:
    """A part of this name; `filename` is None for a plain field."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """Bytes of the part that has begun."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnded:
    """It is whole."""


PartEvent = PartBegun | PartData | PartEnded


class _At(StrEnum):
    PREAMBLE = "preamble"
    DELIMITER = "delimiter"
    HEAD = "head"
    CONTENT = "content"
    EPILOGUE = "epilogue"


class MultipartReader:
    """Events of one body. Keeps no more than a part's head and a delimiter's length. Raises FieldError.

    Owns: what cannot be told yet. Source: RFC 7578; RFC 2046, section 5.1.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._kept = b"\r\n"  # the first delimiter may be the body's very beginning
        self._at = _At.PREAMBLE
        self._num_parts = 0

    @property
    def is_whole(self) -> bool:
        """Whether the last delimiter has come."""
        return self._at is _At.EPILOGUE

    def feed(self, data: bytes) -> list[PartEvent]:
        """What became certain with these bytes."""
        events: list[PartEvent] = []
        self._kept += data
        while self._step(events):
            pass
        return events

    def _step(self, events: list[PartEvent]) -> bool:
        """One thing further; whether there may be another."""
        match self._at:
            case _At.PREAMBLE | _At.CONTENT:
                return self._content(events)
            case _At.DELIMITER:
                return self._after_delimiter()
            case _At.HEAD:
                return self._head(events)
            case _At.EPILOGUE:
                self._kept = b""
                return False

    def _content(self, events: list[PartEvent]) -> bool:
        found = self._kept.find(self._delimiter)
        end = found if found >= 0 else max(0, len(self._kept) - len(self._delimiter) + 1)
        is_part = self._at is _At.CONTENT
        if is_part and end:
            events.append(PartData(self._kept[:end]))
        if found < 0:
            self._kept = self._kept[end:]
            return False
        if is_part:
            events.append(PartEnded())
        self._kept, self._at = self._kept[found + len(self._delimiter) :], _At.DELIMITER
        return True

    def _after_delimiter(self) -> bool:
        rest = self._kept.lstrip(b" \t")
        if len(rest) < 2:
            return self._bounded(rest)
        if rest.startswith(b"--"):
            self._at = _At.EPILOGUE
        elif rest.startswith(b"\r\n"):
            self._kept, self._at = rest[2:], _At.HEAD
        else:
            raise FieldError(FIELD, "a delimiter is followed by something else", "invalid_request")
        return True

    def _head(self, events: list[PartEvent]) -> bool:
        end = self._kept.find(b"\r\n\r\n")
        if end < 0 or end > MAX_PART_HEAD_BYTES:
            return self._bounded(self._kept)
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise FieldError(FIELD, f"has more than {MAX_PARTS} parts", "invalid_request")
        events.append(_begun(self._kept[:end]))
        self._kept, self._at = self._kept[end + 4 :], _At.CONTENT
        return True

    def _bounded(self, waiting: bytes) -> bool:
        if len(waiting) > MAX_PART_HEAD_BYTES:
            raise FieldError(FIELD, f"a part's head has more than {MAX_PART_HEAD_BYTES} bytes", "invalid_request")
        return False


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a header names; None where the body is no form."""
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_param("boundary")
    if head.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        return None
    return boundary.encode() if boundary.isascii() and 0 < len(boundary) <= MAX_BOUNDARY_CHARS else None


def _begun(data: bytes) -> PartBegun:
    head = Message()
    for line in data.split(b"\r\n"):
        name, _, value = line.decode(errors="replace").partition(":")
        if name.strip().lower() == "content-disposition":
            head["content-disposition"] = value.strip()
    called, filename = head.get_param("name", header="content-disposition"), head.get_filename()
    if head.get_content_disposition() != "form-data" or not isinstance(called, str):
        raise FieldError(FIELD, f"a part has no name: {echoed(data.decode(errors='replace'))}", "invalid_request")
    return PartBegun(called, filename)
