"""The input of a batch: JSON lines, each a request to one of the text endpoints, in OpenAI's shape."""

import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.json_body import Fields, parse_fields
from core.errors import RequestError

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
MAX_CUSTOM_ID_CHARS = 512
MAX_PROBLEMS = 100
"""Of a file that is not sound so many lines are named."""

OFFLINE = "offline"
OFFLINE_PRIORITY = -10
"""Below all others: what a batch asks for takes only what they leave."""

KNOWN = frozenset({"custom_id", "method", "url", "body"})


@dataclass(frozen=True, slots=True)
class InputLine:
    """One request. `number` counts the file's lines from 1; `body` is its JSON, ready to be sent."""

    number: int
    custom_id: str
    url: str
    body: bytes


@dataclass(frozen=True, slots=True)
class LineProblem:
    """Why a line of the input cannot be a request; `number` None: it is about the whole file."""

    code: str
    message: str
    number: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a look through a whole input found: how many requests, and what is wrong with it."""

    num_lines: int
    problems: tuple[LineProblem, ...]


def raw_lines(path: Path) -> Generator[tuple[int, bytes], None, None]:
    """The lines that are not blank, with their numbers. The caller's thread reads, a piece at a time."""
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if data.strip():
                yield number, data


def read_line(number: int, data: bytes, endpoint: str | None = None) -> InputLine:
    """A line as a request of the offline class; `endpoint` is the batch's only one. Raises RequestError."""
    fields = parse_fields(data)
    for name in fields:
        if name not in KNOWN:
            raise FieldError(name[:64], "is not a field of a batch's line", "unknown_parameter")
    custom_id, url, body = _text(fields, "custom_id"), _text(fields, "url"), fields.get("body")
    if not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        raise FieldError("custom_id", f"must have 1 to {MAX_CUSTOM_ID_CHARS} characters", "invalid_request")
    if fields.get("method", "POST") != "POST":
        raise FieldError("method", f"must be POST, is {echoed(str(fields['method']))}", "invalid_request")
    if url not in ENDPOINTS or (endpoint is not None and url != endpoint):
        wanted = endpoint or f"one of {', '.join(ENDPOINTS)}"
        raise FieldError("url", f"must be {wanted}, is {echoed(url)}", "invalid_request")
    if not isinstance(body, dict):
        raise FieldError("body", "must be a JSON object", "invalid_type")
    return InputLine(number, custom_id, url, offline_body(body))


def offline_body(body: Fields) -> bytes:
    """A request's body as one of the offline class, whatever class or priority it names. Raises FieldError."""
    if body.get("stream"):
        raise FieldError("body.stream", "a batch's answers are whole; leave it out", "unsupported_parameter")
    changed = {name: value for name, value in body.items() if name not in ("service_tier", "stream", "stream_options")}
    return json.dumps(changed | {"slo_class": OFFLINE, "priority": OFFLINE_PRIORITY}, ensure_ascii=False).encode()


def check_input(path: Path, endpoint: str | None = None) -> Checked:
    """Look through a whole input: every line a request, no `custom_id` twice. Raises OSError."""
    seen, problems = set[str](), list[LineProblem]()
    num_lines = 0
    for number, data in raw_lines(path):
        num_lines += 1
        time.sleep(0)  # between two lines whoever streams tokens in this process comes first
        try:
            line = read_line(number, data, endpoint)
            if line.custom_id in seen:
                raise FieldError("custom_id", f"{echoed(line.custom_id)} is there twice", "duplicate_custom_id")
            seen.add(line.custom_id)
        except RequestError as error:
            problems.append(problem_of(number, error))
            if len(problems) == MAX_PROBLEMS:
                break
    if not num_lines:
        problems.append(LineProblem("empty_file", "the file has no requests"))
    return Checked(num_lines, tuple(problems))


def problem_of(number: int, error: RequestError) -> LineProblem:
    """A refused line."""
    return LineProblem(error.code, error.message, number, error.field if isinstance(error, FieldError) else None)


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise FieldError(name, "is missing", "invalid_request")
    if not isinstance(value, str):
        raise FieldError(name, "must be a text", "invalid_type")
    return value
