"""What every HTTP request passes first: bounds of its headers, its id, its key; and where every error is translated."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.gateway.access import Caller
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.errors import FieldNames, HttpError, http_error
from cluster.gateway.openai.hosts import HostCheck
from cluster.gateway.openai.respond import STOPPING
from cluster.gateway.trace_context import TRACEPARENT_KEY, note_traceparent
from cluster.gateway.validation import MAX_NAME_CHARS
from core.errors import PenstockError, RequestCancelled, RequestError

MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
REQUEST_ID = "x-request-id"
CALLER, NAMES, ID = "penstock.caller", "penstock.names", "penstock.request_id"
"""Where in a request's state the caller, the names of its fields and its id stand."""

OPEN_PATHS = frozenset({"/health", "/ready", "/ping", "/version"})
"""What a prober without a key may ask for."""

NO_TEXT = frozenset(
    {
        *("/embeddings", "/pooling", "/classify", "/score", "/rerank", "/moderations"),
        *("/audio/speech", "/audio/transcriptions", "/audio/translations"),
        *("/images/generations", "/images/edits", "/images/variations"),
    }
)
"""What OpenAI and vLLM have for other kinds of models."""

CLOSING = frozenset({"body_too_large", "headers_too_large", "read_timeout", "bad_request_line", "draining"})
"""Codes after which a connection is of no more use."""

Admit: TypeAlias = Callable[[str | None, float], Caller]
"""`Access.caller` or `Access.admin`: raises AccessDenied."""

NO_HEADERS: Mapping[str, str] = {}
_log = logging.getLogger(__name__)


class Front:
    """An ASGI middleware. `open_paths` need no key, all others one that `admit` takes."""

    def __init__(self, app: ASGIApp, admit: Admit, hosts: HostCheck, open_paths: Iterable[str] = OPEN_PATHS) -> None:
        self._app = app
        self._admit_key = admit
        self._hosts = hosts
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connection there are none."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        exchange = _Exchange(scope, send)
        try:
            self._admit(scope)
            await self._app(scope, receive, exchange.send)
        except RequestCancelled:
            return
        except asyncio.CancelledError:
            await exchange.end(STOPPING, receive)
            raise
        except PenstockError as error:
            await exchange.end(http_error(error, scope["state"].get(NAMES, FieldNames())), receive)
        except HTTPException as error:
            await exchange.end(_unknown(scope, error.status_code), receive, error.headers or {})
        except Exception:
            number = secrets.token_hex(4)
            _log.exception("an HTTP request failed by our own mistake, number %s", number)
            if exchange.has_begun:
                raise
            message = f"internal error, number {number} in the log"
            await exchange.end(HttpError(500, "internal", message), receive)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        scope["state"][ID] = secrets.token_hex(16)
        _check_headers(headers)
        self._hosts.check(headers.getlist("host"))
        scope["state"][ID] = _request_id(headers) or scope["state"][ID]
        note_traceparent(headers.get(TRACEPARENT_KEY))
        if scope["path"] not in self._open_paths:
            scope["state"][CALLER] = self._admit_key(_authorization(headers), time.time())


class _Exchange:
    """One request's answer: whether it has begun, and its id on its way out."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.has_begun = False
        self._scope = scope
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            MutableHeaders(scope=message)[REQUEST_ID] = self._scope["state"][ID]
        await self._send(message)

    async def end(self, error: HttpError, receive: Receive, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Answer with an error; too late where the answer has begun. What is not to be read on is closed."""
        if not self.has_begun:
            closing = {"connection": "close"} if error.code in CLOSING else {}
            response = error.response({**headers, **closing}, self._scope["path"])
            await response(self._scope, receive, self.send)


def _authorization(headers: Headers) -> str | None:
    """Anthropic's clients send their key by a header of its own."""
    key = headers.get("x-api-key")
    return f"Bearer {key}" if key and "authorization" not in headers else headers.get("authorization")


def _check_headers(headers: Headers) -> None:
    raw = headers.raw
    num_bytes = sum(len(name) + len(value) + 4 for name, value in raw)
    if len(raw) > MAX_HEADERS or num_bytes > MAX_HEADER_BYTES:
        limit = f"at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all"
        raise RequestError(f"{limit}, are {len(raw)} of {num_bytes}", code="headers_too_large")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise RequestError("both transfer-encoding and content-length are given", code="bad_request_line")


def _request_id(headers: Headers) -> str:
    name = headers.get(REQUEST_ID, "")
    if len(name) > MAX_NAME_CHARS or not (name.isascii() and name.isprintable()):
        problem = f"must be at most {MAX_NAME_CHARS} printable ASCII characters, is {echoed(name)}"
        raise FieldError(REQUEST_ID, problem, "invalid_request_id")
    return name


def _unknown(scope: Scope, status: int) -> HttpError:
    asked = f"{scope['method']} {scope['path']}"
    if status == 405:
        return HttpError(405, "method_not_allowed", f"{echoed(asked)} is not served; another method is")
    if scope["path"].removeprefix("/v1") in NO_TEXT:
        return HttpError(404, "not_found", f"{echoed(asked)} is not served: this model writes text and nothing else")
    return HttpError(404, "not_found", f"there is no {echoed(asked)}; GET /docs lists what there is")
