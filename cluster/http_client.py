"""A small client of the OpenAI interface for the commands: plain, blocking, a connection for each request."""

import argparse
import http.client
import json
import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cluster.client_flags import key_of, ssl_context
from cluster.text_flags import DEFAULT_URL
from core.errors import ConfigError, PenstockError, Unavailable

JSON = {"content-type": "application/json"}


class HttpFailed(PenstockError):
    """The server answered with an error; `code` and message are its own."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpClient:
    """Where a server is, and who calls. `base` is what stands before every path, without `/v1`."""

    host: str
    port: int
    base: str = ""
    key: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    timeout_s: float = 600.0

    def post(self, path: str, body: bytes) -> HttpAnswer:
        """The whole answer, whatever its status. Raises Unavailable where no server answers."""
        with self.open("POST", path, body) as response:
            return HttpAnswer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str) -> HttpAnswer:
        """The same for GET."""
        with self.open("GET", path) as response:
            return HttpAnswer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def events(self, path: str, body: bytes) -> Generator[Mapping[str, object], None, None]:
        """The events of a stream as they come; closing it cancels the request. Raises HttpFailed, Unavailable."""
        with self.open("POST", path, body) as response:
            if response.status != 200:
                raise failed(response.status, response.read())
            for line in response:
                data = line.strip().removeprefix(b"data: ")
                if not line.startswith(b"data: ") or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise failed(0, data)
                yield event

    @contextmanager
    def open(
        self, method: str, path: str, body: bytes | None = None
    ) -> Generator[http.client.HTTPResponse, None, None]:
        """One request, and the answer's beginning; its connection is gone at the end."""
        connection = self._connection()
        headers = JSON | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            connection.request(method, self.base + path, body, headers)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            where = f"{self.host}:{self.port}"
            raise Unavailable(f"no answer from {where}: {error or type(error).__name__} (penstock serve)") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.tls is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        return http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s, context=self.tls)


def client_of(url: str, args: argparse.Namespace) -> HttpClient:
    """A client of this address, as the flags say who calls. Raises ConfigError."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError([f"--url {url}: {error}"]) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError([f"--url must be http:// or https:// and a host, as {DEFAULT_URL}, not {url[:128]}"])
    tls = ssl_context(args) if parts.scheme == "https" else None
    base = parts.path.rstrip("/").removesuffix("/v1")
    return HttpClient(parts.hostname, port or (80 if tls is None else 443), base, key_of(args), tls)


def failed(status: int, body: bytes) -> HttpFailed:
    """An error's answer as ours."""
    try:
        error = json.loads(body)["error"]
        return HttpFailed(str(error["message"]), code=str(error["code"]))
    except (ValueError, KeyError, TypeError):
        return HttpFailed(f"status {status}: {body[:200].decode(errors='replace')}", code="unavailable")
