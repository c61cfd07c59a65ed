"""A request's body: read within its bounds, then parsed as JSON that means one thing only."""

import asyncio
import json
import re
from collections.abc import Mapping

from starlette.requests import Request

from cluster.gateway.errors_wire import FieldError
from core.errors import InvalidRequest, RequestCancelled, RequestError

MAX_DEPTH = 32
MAX_NODES = 10_000
"""Objects, arrays and texts of one body. Numbers are not counted: a prompt may be a hundred thousand token ids."""

SLOW_AFTER_S = 10.0
MIN_BYTES_PER_S = 1000.0

_SHAPE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{\]}]', re.DOTALL)
"""A text, closed or not, or a bracket outside of texts. Possessive, so that no input makes it look twice."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

JsonValue = object
Fields = dict[str, JsonValue]


async def read_fields(request: Request, max_bytes: int) -> Fields:
    """The body as a JSON object. Raises RequestError."""
    _check_media_type(request.headers)
    return parse_fields(await read_body(request, max_bytes))


async def read_body(request: Request, max_bytes: int) -> bytes:
    """All bytes of the body. Raises RequestError where it is too large or comes too slowly.

    Up to twice the limit is taken in and thrown away, so that a client hears why before its connection goes.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > 2 * max_bytes:
        raise _too_large(max_bytes)
    loop = asyncio.get_running_loop()
    started, taken, parts = loop.time(), 0, list[bytes]()
    while True:
        until = started + max(SLOW_AFTER_S, taken / MIN_BYTES_PER_S)
        part, more = await next_part(request, until)
        taken += len(part)
        if taken <= max_bytes:
            parts.append(part)
        elif not more or taken > 2 * max_bytes:
            raise _too_large(max_bytes)
        if not more:
            return b"".join(parts)


async def next_part(request: Request, until: float) -> tuple[bytes, bool]:
    """A part of the body, and whether more follows. Raises RequestError where it has not come `until` then."""
    try:
        async with asyncio.timeout_at(until):
            message = await request.receive()
    except TimeoutError as error:
        limit = f"at least {MIN_BYTES_PER_S:g} bytes a second after {SLOW_AFTER_S:g} s"
        raise RequestError(f"the body comes too slowly: {limit}", code="read_timeout") from error
    if message["type"] == "http.disconnect":
        raise RequestCancelled("the client left before its body was whole")
    return message.get("body", b""), message.get("more_body", False)


def parse_fields(data: bytes) -> Fields:
    """A JSON object of at most `MAX_DEPTH` and `MAX_NODES`, every key once, every text whole. Raises RequestError."""
    _check_shape(data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not valid UTF-8 at byte {error.start}", code="invalid_utf8") from error
    try:
        fields = json.loads(text, object_pairs_hook=_unique, parse_int=_whole if "-0" in text else None)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise RequestError(f"the body is not JSON: {error.msg} at {where}", code="invalid_json") from error
    except ValueError as error:  # a number of more digits than Python takes
        raise RequestError("the body is not JSON: a number has too many digits", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_type")
    if _SURROGATE.search(data):
        _check_texts(fields)
    return fields


def _check_media_type(headers: Mapping[str, str]) -> None:
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        problem = "the body must be application/json in UTF-8 (header content-type)"
        raise RequestError(problem, code="unsupported_media_type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("a compressed body is not taken (header content-encoding)", code="unsupported_media_type")


def _check_shape(data: bytes) -> None:
    """Before parsing. Most bodies have so few brackets and quotes that counting them is enough."""
    num_openers = data.count(b"[") + data.count(b"{")
    if num_openers <= MAX_DEPTH and num_openers + data.count(b'"') <= MAX_NODES:
        return
    depth = nodes = 0
    for found in _SHAPE.finditer(data):
        kind = data[found.start()]
        if kind in b"]}":
            depth -= 1
            if depth < 0:
                raise RequestError("the body is not JSON: a bracket closes nothing", code="invalid_json")
            continue
        nodes += 1
        if kind in b"[{":
            depth += 1
        if depth > MAX_DEPTH:
            raise RequestError(f"the body is nested deeper than {MAX_DEPTH}", code="json_too_complex")
        if nodes > MAX_NODES:
            problem = f"the body has more than {MAX_NODES} objects, arrays and texts"
            raise RequestError(problem, code="json_too_complex")


def _unique(pairs: list[tuple[str, JsonValue]]) -> Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FieldError(twice[:64], "is there twice", "invalid_json")
    return fields


def _whole(digits: str) -> float:
    """`-0` would become a plain 0: no field means it, so it is kept for its check to find."""
    return -0.0 if digits == "-0" else int(digits)


def _check_texts(fields: Fields) -> None:
    for name, value in fields.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            field = name.encode(errors="replace").decode()[:64]
            raise FieldError(field, "has half of a surrogate pair", "invalid_utf8") from error


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the body has more than {max_bytes} bytes, the most that is taken", code="body_too_large")
