"""What every HTTP request passes first: heads and bodies on raw sockets, ids, keys, browsers."""

import asyncio
import contextlib
import socket

import httpx
import pytest

from cluster.gateway.keys import Grant
from cluster.gateway.openai import json_body, protocol
from cluster.gateway.openai.config import HttpConfig
from cluster.gateway.openai.hosts import HostCheck
from core.errors import ConfigError, RequestError
from tests.gateway.keyed import Keys
from tests.openai.asking import CHAT, COMPLETIONS, ask, says
from tests.openai.serving import Place, Setting, running, serve

KEYS = Keys(Grant("me", "acme", max_priority=2), Grant("other", models=("other",)))
POST = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = '{"prompt": "fox"}'


async def say(place: Place, text: str) -> str:
    """What a server answers to these very bytes, until it closes the connection or the answer is whole."""
    host, _, port = place.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(text.encode("latin-1"))
        await writer.drain()
        return (await reader.read()).decode()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /health HTTP/1.1\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\nhost: y\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: localhost\rx: y\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\nx y: z\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        ("GET /\0 HTTP/1.1\r\nhost: localhost\r\n\r\n", 400),
        ("nonsense\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (f"{POST}content-length: 17\r\ntransfer-encoding: chunked\r\n\r\n11\r\n{BODY}\r\n0\r\n\r\n", 400),
        (f"{POST}transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + "y" * 17_000 + "\r\n\r\n", 431),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\n" + "x: y\r\n" * 100 + "\r\n", 431),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + "y" * 200_000, 400),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_head_is_refused_and_its_connection_closed(head: str, status: int) -> None:
    async def scenario(place: Place) -> None:
        try:
            answer = await say(place, head)
        except ConnectionResetError:
            assert len(head) > 100_000, "the answer to a short head is heard"
        else:
            assert answer.startswith(f"HTTP/1.1 {status} "), answer
            assert "connection: close" in answer.lower()
            assert '"code": "' in answer
        assert place.cluster.arrived == []
        assert (await place.client.get("/health")).status_code == 200

    serve(scenario)


def test_a_head_or_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(json_body, "SLOW_AFTER_S", 0.2)

    async def scenario(place: Place) -> None:
        with contextlib.suppress(ConnectionResetError):
            assert await say(place, "GET /health HTTP/1.1\r\nhost: localhost\r\n") == ""
        later = await say(place, "GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\nGET /ping HTTP/1.1\r\nho")
        assert later.count("HTTP/1.1 ") == 1
        answer = await say(place, f"{POST}content-length: 17\r\n\r\n{{")
        assert answer.startswith("HTTP/1.1 408 ")
        assert '"read_timeout"' in answer

    serve(scenario)


def test_a_clients_own_id_is_echoed_and_one_is_made_where_there_is_none() -> None:
    async def scenario(place: Place) -> None:
        mine = await place.client.get("/health", headers={"x-request-id": "mine"})
        made = [(await place.client.get("/nope")).headers["x-request-id"] for _ in range(2)]
        assert mine.headers["x-request-id"] == "mine"
        assert len(set(made)) == 2
        told = await place.client.post(COMPLETIONS, json={"prompt": "fox"}, headers={"x-request-id": "mine"})
        assert told.headers["x-request-id"] == "mine"
        assert "mine" not in told.json()["id"]
        long = await place.client.get("/health", headers={"x-request-id": "x" * 129})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "invalid_request_id")

    serve(scenario)


def test_with_keys_every_path_but_the_probes_needs_one() -> None:
    async def scenario(place: Place) -> None:
        for path in ("/health", "/ready", "/ping", "/version"):
            assert (await place.client.get(path)).status_code == 200
        paths = (
            "/v1/models",
            "/docs",
            "/openapi.json",
            "/metrics",
            "/nope",
            "/v1/%2e%2e/health",
            "/health/",
            "/tokenize",
        )
        for path in (*paths, CHAT, COMPLETIONS, "/health?deep=1"):
            for method in ("GET",) if path == "/health?deep=1" else ("GET", "POST", "OPTIONS"):
                answer = await place.client.request(method, path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
                assert answer.headers["www-authenticate"] == "Bearer"
        assert place.cluster.arrived == []

    serve(scenario, Setting(access=KEYS.settings))


def test_a_key_sets_tenant_and_ceiling_and_opens_its_models_only() -> None:
    async def scenario(place: Place) -> None:
        mine, other = ({"authorization": KEYS.header(name)} for name in ("me", "other"))
        fields = {"messages": says("fox"), "max_tokens": 1, "priority": 9}
        answer = await place.client.post(CHAT, json=fields, headers=mine)
        assert (answer.status_code, answer.headers["penstock-notes"]) == (200, "priority_clamped")
        (request,) = place.cluster.arrived
        assert (request.tenant, request.priority) == ("acme", 2)
        refused = await place.client.post(CHAT, json=fields, headers=other)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_forbidden")
        assert (await place.client.get("/v1/models", headers=other)).json()["data"] == []
        assert (await place.client.get("/v1/models/tiny", headers=other)).status_code == 403
        assert (await place.client.post("/tokenize", json={"prompt": "x"}, headers=other)).status_code == 403
        assert (await place.client.get("/health?deep=1", headers=mine)).status_code == 200

    serve(scenario, Setting(access=KEYS.settings))


@pytest.mark.parametrize(
    ("host", "is_near"),
    [
        *(
            ("localhost", True),
            ("LOCALHOST:8000", True),
            ("127.0.0.1:1", True),
            ("[::1]:8000", True),
            ("10.0.0.7", True),
        ),
        *(("a.localhost", True), ("host.docker.internal", True), (socket.gethostname(), True)),
        *(("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.evil.example:8000", False)),
    ],
)
def test_a_server_for_this_machine_answers_to_its_names_only(host: str, is_near: bool) -> None:
    HostCheck(is_local=False).check([host])
    with contextlib.nullcontext() if is_near else pytest.raises(RequestError, match="no name of this machine"):
        HostCheck(is_local=True).check([host])


def test_with_keys_any_name_is_answered_to() -> None:
    async def scenario(place: Place) -> None:
        headers = {"host": "api.example", "authorization": KEYS.header("me")}
        assert (await place.client.get("/v1/models", headers=headers)).status_code == 200

    serve(scenario, Setting(access=KEYS.settings))


def test_no_page_may_call_unless_its_origin_is_allowed() -> None:
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}

    async def closed(place: Place) -> None:
        answer = await place.client.options(CHAT, headers=headers)
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-origin" not in (await place.client.get("/health", headers=headers)).headers

    async def opened(place: Place) -> None:
        answer = await place.client.options(CHAT, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        refused = await place.client.post(CHAT, content=b"{", headers=headers)
        assert refused.headers["access-control-allow-origin"] == "https://a.example"

    serve(closed)
    serve(opened, Setting(config=HttpConfig(port=0, allowed_origins=("https://a.example",))))


def test_a_connection_serves_one_request_after_the_other() -> None:
    async def scenario(place: Place) -> None:
        get = "GET /ping HTTP/1.1\r\nhost: localhost\r\n"
        answer = await say(place, f"{get}\r\n{get}\r\n{get}connection: close\r\n\r\n")
        assert answer.count("HTTP/1.1 200 OK") == 3

    serve(scenario)


def test_a_connection_too_many_is_broken_off_and_the_others_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 1)

    async def scenario(place: Place) -> None:
        assert (await place.client.get("/health")).status_code == 200
        with contextlib.suppress(ConnectionResetError):
            assert await say(place, "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n") == ""
        assert (await place.client.get("/health")).status_code == 200

    serve(scenario)


def test_an_address_that_cannot_be_had_is_named() -> None:
    async def taken(place: Place) -> None:
        port = int(place.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match="--port"):
            async with running(Setting(config=HttpConfig(port=port))):
                pass

    serve(taken)


def test_our_server_tells_nothing_of_what_it_is_made_of() -> None:
    async def scenario(place: Place) -> None:
        answers = [await place.client.get("/health"), await ask(place, COMPLETIONS, prompt="")]
        for answer in answers:
            assert "server" not in answer.headers
            assert "uvicorn" not in str(answer.headers).lower()
        assert isinstance(answers[0], httpx.Response)

    serve(scenario)
