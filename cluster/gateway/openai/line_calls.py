"""A line of a batch served as the request it is: by the route that serves it over HTTP, without a connection."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import cast

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from cluster.batches.input_lines import InputLine
from cluster.batches.result_log import LineAnswer
from cluster.gateway.access import Caller
from cluster.gateway.openai.chat_routes import chat_routes
from cluster.gateway.openai.completion_routes import completion_routes
from cluster.gateway.openai.door import Door
from cluster.gateway.openai.errors import FieldNames, HttpError, http_error
from cluster.gateway.openai.front import CALLER, ID, NAMES
from cluster.gateway.openai.responses_routes import responses_routes
from core.errors import AccessDenied, PenstockError

MS_PER_S = 1000.0
Endpoint = Callable[[Request], Awaitable[Response]]
_log = logging.getLogger(__name__)


class LineCalls:
    """Serves lines in the name of keys, named by their ids."""

    def __init__(self, door: Door) -> None:
        self._door = door
        routes = [route for make in (chat_routes, completion_routes, responses_routes) for route in make(door).routes]
        self._endpoints = {
            route.path: cast(Endpoint, route.endpoint) for route in routes if isinstance(route, APIRoute)
        }

    async def ask(self, owner: str, line: InputLine) -> LineAnswer:
        """The line's answer, or its refusal; a key that is gone is one. To be cancelled at any time."""
        exchange = _Exchange(line)
        try:
            exchange.state[CALLER] = self._caller(owner)
            response = await self._endpoints[line.url](Request(exchange.scope, exchange.receive))
            await response(exchange.scope, exchange.receive, exchange.send)
        except PenstockError as error:
            return exchange.refused(http_error(error, cast(FieldNames, exchange.state.get(NAMES, FieldNames()))))
        except Exception:
            number = secrets.token_hex(4)
            _log.exception("a batch's line failed by our own mistake, number %s", number)
            return exchange.refused(HttpError(500, "internal", f"internal error, number {number} in the log"))
        return exchange.answer()

    def _caller(self, owner: str) -> Caller:
        caller = self._door.gateway.access.holder(owner, time.time())
        if caller is None:
            raise AccessDenied("the key of this batch is not known, or no longer")
        return caller


class _Exchange:
    """One request and its answer, as a route sees them. The client never leaves."""

    def __init__(self, line: InputLine) -> None:
        self.request_id = secrets.token_hex(16)
        self.state: dict[str, object] = {ID: self.request_id}
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": line.url,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "state": self.state,
        }
        self._line = line
        self._is_read = False
        self._status = 500
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self._line.body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("nobody sets this event")

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))

    def refused(self, error: HttpError) -> LineAnswer:
        response = error.response()
        self._status, self._headers, self._parts = error.status, dict(response.raw_headers), [bytes(response.body)]
        return self.answer()

    def answer(self) -> LineAnswer:
        body, wait_ms = b"".join(self._parts), self._headers.get(b"retry-after-ms")
        return LineAnswer(
            status=self._status,
            request_id=self.request_id,
            body=body,
            code="" if self._status == 200 else str(json.loads(body)["error"]["code"]),
            retry_after_s=None if wait_ms is None else int(wait_ms) / MS_PER_S,
            is_hopeless=self._headers.get(b"x-should-retry") == b"false",
        )
