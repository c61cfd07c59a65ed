"""Server-sent events as bytes: headers, comments, ends, errors in mid-stream, clients that leave or do not read."""

import asyncio
import contextlib
import json
import socket

import httpx
import openai
import pytest

from cluster.gateway.limits import Limits
from cluster.gateway.openai.config import HttpConfig
from core.errors import ErrorInfo
from core.events import Tick
from core.goodput import Outcome
from core.request import Request
from tests.gateway.fake_cluster import until
from tests.openai.asking import CHAT, COMPLETIONS, TEXT, ask, client_of, events_of, expected, says
from tests.openai.serving import Place, Setting, serve


def test_the_bytes_of_a_stream_are_those_that_clients_expect() -> None:
    async def scenario(place: Place) -> None:
        answer = await ask(place, CHAT, messages=says("the fox"), max_tokens=2, stream=True)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
        first, second, done = events_of(answer.text)
        begin, _, rest = first.partition('"created":')
        assert begin.startswith('{"id":"chatcmpl-') and begin.endswith('"object":"chat.completion.chunk",')
        choice = '{"index":0,"delta":{"role":"assistant","content":"the"},"logprobs":null,"finish_reason":null}'
        assert rest.partition(",")[2] == f'"model":"tiny","choices":[{choice}]}}'
        assert json.loads(second)["choices"][0]["finish_reason"] == "length"
        assert done == "[DONE]"

    serve(scenario)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_usage_is_null_in_every_chunk_but_the_last_where_it_was_asked(path: str) -> None:
    async def scenario(place: Place) -> None:
        fields = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}
        prompt = {"messages": says("fox")} if path == CHAT else {"prompt": "fox"}
        *chunks, last = [
            json.loads(event) for event in events_of((await ask(place, path, **prompt, **fields)).text)[:-1]
        ]
        assert [chunk["usage"] for chunk in chunks] == [None] * 5
        assert last["usage"]["completion_tokens"] == 5
        assert last["choices"] == []

    serve(scenario)


def test_characters_of_several_tokens_are_never_cut() -> None:
    async def scenario(place: Place) -> None:
        text = (await ask(place, COMPLETIONS, prompt="漢字 😀😀 é", max_tokens=60, stream=True)).text
        pieces = [json.loads(event)["choices"][0]["text"] for event in events_of(text)[:-1]]
        assert len(pieces) == 60
        assert all("\ufffd" not in piece for piece in pieces[:-1])
        assert "".join(pieces) == expected(place, "漢字 😀😀 é", 60)

    serve(scenario)


def test_comments_are_sent_while_a_request_waits_and_the_client_does_not_mind() -> None:
    async def scenario(place: Place) -> None:
        async def late(request: Request) -> None:
            await asyncio.sleep(0.2)
            await place.cluster.echo(request)

        place.cluster.answer = late
        text = (await ask(place, CHAT, messages=says("fox"), max_tokens=2, stream=True)).text
        assert text.startswith(": keep-alive\n\n: keep-alive\n\n")
        async with client_of(place) as client:
            stream = await client.chat.completions.create(model="tiny", messages=says("fox"), max_tokens=2, stream=True)
            assert len([chunk async for chunk in stream]) == 2

    serve(scenario, Setting(config=HttpConfig(port=0, keep_alive_s=0.05)))


def losing(place: Place, after: int) -> None:
    """From now on a node is lost after so many tokens, once they have gone out."""

    async def answer(request: Request) -> None:
        place.cluster.emit(request, 0, after)
        await asyncio.sleep(0.05)
        await place.cluster.failing(Outcome.FAILED, ErrorInfo("worker_lost", "a node was lost"))(request)

    place.cluster.answer = answer


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_loss_in_mid_stream_is_an_error_event_without_done(path: str) -> None:
    async def scenario(place: Place) -> None:
        losing(place, 3)
        prompt = {"messages": says("fox")} if path == CHAT else {"prompt": "fox"}
        answer = await ask(place, path, **prompt, max_tokens=9, stream=True)
        *chunks, last = events_of(answer.text)
        assert (answer.status_code, len(chunks)) == (200, 3)
        told = {"message": "a node was lost", "type": "server_error", "param": None, "code": "worker_lost"}
        assert json.loads(last) == {"error": told}

    serve(scenario)


def test_the_official_client_raises_our_code_in_mid_stream() -> None:
    async def scenario(place: Place) -> None:
        losing(place, 3)
        async with client_of(place) as client:
            stream = await client.chat.completions.create(model="tiny", messages=says("fox"), max_tokens=9, stream=True)
            with pytest.raises(openai.APIError) as failed:
                async for _ in stream:
                    pass
        assert failed.value.code == "worker_lost"
        assert len(place.cluster.arrived) == 1

    serve(scenario)


def test_a_refusal_before_the_first_token_is_told_by_status_in_a_stream_too() -> None:
    async def scenario(place: Place) -> None:
        error = ErrorInfo("overloaded", "no room", 1.5)
        place.cluster.answer = place.cluster.failing(Outcome.REFUSED, error)
        answer = await ask(place, CHAT, messages=says("fox"), stream=True)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.headers["retry-after-ms"] == "1500"
        assert answer.json()["error"]["code"] == "overloaded"

    serve(scenario)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_a_client_that_leaves_is_cancelled_at_once(stream: bool, num_prompts: int) -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.echo_short_of(100)
        fields = {"prompt": ["fox"] * num_prompts, "max_tokens": 100, "stream": stream}
        asking = asyncio.ensure_future(ask(place, COMPLETIONS, **fields))
        await until(lambda: len(place.cluster.arrived) == num_prompts)
        await asyncio.sleep(0.05)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await until(lambda: len(place.cluster.told_ends) == num_prompts)
        assert set(place.cluster.told_ends.values()) == {Outcome.CANCELLED}

    serve(scenario)


def test_a_reader_that_stops_reading_is_cancelled_and_its_connection_broken_off() -> None:
    limits = Limits(max_pending_bytes=20_000, max_stall_s=30)

    async def scenario(place: Place) -> None:
        async def flood(request: Request) -> None:
            for first in range(0, 60_000, 50):
                if request.id in place.cluster.told_ends:
                    return
                place.cluster.emit(request, first, 50)
                await asyncio.sleep(0)

        place.cluster.answer = flood
        loop = asyncio.get_running_loop()
        body = json.dumps({"prompt": "fox", "max_tokens": 60_000, "stream": True}).encode()
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.setblocking(False)
            host, _, port = place.url.removeprefix("http://").partition(":")
            await loop.sock_connect(reader, (host, int(port)))
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            await loop.sock_sendall(reader, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: bool(place.cluster.told_ends))
            assert list(place.cluster.told_ends.values()) == [Outcome.CANCELLED]
            read = b""
            with contextlib.suppress(ConnectionResetError):
                while data := await loop.sock_recv(reader, 1 << 20):
                    read += data
            assert b"data: " in read
            assert not read.endswith(b"0\r\n\r\n"), "the answer looks whole"

    serve(scenario, Setting(limits=limits, max_model_len=100_000))


def test_a_client_stuck_for_longer_than_the_limit_is_given_up() -> None:
    async def scenario(place: Place) -> None:
        async def flood(request: Request) -> None:
            for first in range(0, 60_000, 50):
                if request.id in place.cluster.told_ends:
                    return
                place.cluster.emit(request, first, 50)
                await asyncio.sleep(0.001)
                place.gateway.handle(Tick(), asyncio.get_running_loop().time())

        place.cluster.answer = flood
        async with httpx.AsyncClient(base_url=place.url, timeout=30, trust_env=False) as client:
            fields = {"prompt": "fox", "max_tokens": 60_000, "stream": True}
            async with client.stream("POST", COMPLETIONS, json=fields) as answer:
                assert answer.status_code == 200
                await until(lambda: bool(place.cluster.told_ends))
        assert list(place.cluster.told_ends.values()) == [Outcome.CANCELLED]

    limits = Limits(max_pending_bytes=1 << 30, max_stall_s=0.2)
    serve(scenario, Setting(limits=limits, max_model_len=100_000))


def test_clients_that_leave_at_any_moment_harm_nobody() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.echo_short_of(400)

        async def leave_after(num_events: int) -> None:
            fields = {"prompt": TEXT, "max_tokens": 400, "stream": True}
            async with place.client.stream("POST", COMPLETIONS, json=fields) as answer:
                lines = answer.aiter_lines()
                for _ in range(num_events):
                    await anext(lines)

        async def stay() -> str:
            answer = await ask(place, COMPLETIONS, prompt=TEXT, max_tokens=80, stream=True)
            return "".join(json.loads(event)["choices"][0]["text"] for event in events_of(answer.text)[:-1])

        results = await asyncio.gather(*(leave_after(1 + 9 * it) for it in range(16)), *(stay() for _ in range(16)))
        assert [it for it in results if it is not None] == [expected(place, TEXT, 80)] * 16
        await until(lambda: len(place.cluster.told_ends) == 32)
        ends = list(place.cluster.told_ends.values())
        assert (ends.count(Outcome.CANCELLED), ends.count(Outcome.FINISHED)) == (16, 16)

    serve(scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_a_server_that_stops_tells_what_it_cuts_off(stream: bool) -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.echo_short_of(30)
        asking = asyncio.ensure_future(ask(place, COMPLETIONS, prompt="fox", max_tokens=30, stream=stream))
        await until(lambda: len(place.cluster.arrived) == 1)
        await asyncio.sleep(0.1)
        await place.server.stop()
        answer = await asking
        error = json.loads(events_of(answer.text)[-1])["error"] if stream else answer.json()["error"]
        assert (answer.status_code, error["code"]) == (200 if stream else 503, "draining")

    serve(scenario)


def test_a_stop_with_grace_lets_open_streams_finish_and_refuses_new_requests() -> None:
    async def scenario(place: Place) -> None:
        async def slow(request: Request) -> None:
            for index in range(request.sampling.max_tokens):
                await asyncio.sleep(0.02)
                place.cluster.emit(request, index, 1)

        place.cluster.answer = slow
        asking = asyncio.ensure_future(ask(place, COMPLETIONS, prompt="fox", max_tokens=30, stream=True))
        await until(lambda: len(place.cluster.arrived) == 1)
        stopping = asyncio.ensure_future(place.server.stop(grace_s=30))
        await until(lambda: place.gateway.is_draining)
        with contextlib.suppress(httpx.ConnectError):
            assert (await ask(place, COMPLETIONS, prompt="fox")).status_code == 503
        assert len(events_of((await asking).text)) == 31
        await stopping

    serve(scenario)
