"""The clients of `penstock bench gateway`: they note when each token came, and cost as little as they can."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field

import grpc

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import GENERATE

TEXT = "the water comes down the penstock and turns the wheel"
EVENT, DONE = b"data: {", b"data: ["
USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')
END_BYTES = 1024
"""So much of a stream's end holds its usage."""


@dataclass(slots=True)
class Came:
    """One stream: when it was asked for, and when each of its tokens came; seconds of one clock.

    `end` is what it ended with, over HTTP.
    """

    asked_at: float
    at: list[float] = field(default_factory=list)
    end: bytes = b""

    @property
    def ttft_s(self) -> float:
        """To the first token."""
        return self.at[0] - self.asked_at

    @property
    def gaps_s(self) -> list[float]:
        """Between tokens; those that came together have none between them."""
        return [after - before for before, after in zip(self.at, self.at[1:], strict=False)]

    @property
    def num_told(self) -> int | None:
        """The tokens of its usage, where it ended with one."""
        found = USAGE.findall(self.end)
        return int(found[-1]) if found else None


class _Reader(asyncio.Protocol):
    """One request over HTTP/1.1. Owns: its connection."""

    def __init__(self, request: bytes) -> None:
        self.came = Came(0.0)
        self.over = asyncio.get_running_loop().create_future()
        self._request = request
        self._tail = b""
        self._is_done = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.came.asked_at = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        self.came.at += [time.perf_counter()] * seen.count(EVENT)
        self._tail = seen[1 - len(EVENT) :]
        self.came.end = (self.came.end + data)[-END_BYTES:]
        self._is_done = self._is_done or DONE in seen

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    @property
    def is_whole(self) -> bool:
        """Whether the stream ended as streams do."""
        return self._is_done


def chat_request(num_tokens: int, **more: object) -> bytes:
    """A chat completion that streams."""
    fields = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": num_tokens, "stream": True}
    return _post("/v1/chat/completions", json.dumps(fields | {"ignore_eos": True} | more).encode())


def counted_request(num_tokens: int) -> bytes:
    """The same, with the usage in an event of its own at the end: for who may put two tokens into one event."""
    return chat_request(num_tokens, stream_options={"include_usage": True})


def bar_request(num_tokens: int) -> bytes:
    """So many events of the bar."""
    return _post(f"/{num_tokens}", b"{}")


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def http_stream(port: int, request: bytes) -> Came:
    """One stream to its end."""
    _, reader = await asyncio.get_running_loop().create_connection(lambda: _Reader(request), "127.0.0.1", port)
    await reader.over
    assert reader.is_whole, "a stream was broken off"
    return reader.came


def grpc_request(num_tokens: int) -> bytes:
    """The same conversation over gRPC."""
    sampling = pb.SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    return pb.GenerateRequest(text=TEXT, chat=True, sampling=sampling).SerializeToString()


async def grpc_stream(channel: grpc.aio.Channel, request: bytes) -> Came:
    """One stream to its end."""
    generate = channel.unary_stream(GENERATE, _as_is, pb.GenerateResponse.FromString)
    came = Came(time.perf_counter())
    async for response in generate(request):
        came.at += [time.perf_counter()] * len(response.token_ids)
    return came


def _as_is(request: bytes) -> bytes:
    return request
