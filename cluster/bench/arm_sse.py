"""The bar's arm: the same bytes written by nothing but uvicorn, as a gateway would that does nothing else."""

import argparse
import asyncio
import threading
import time

from starlette.types import Receive, Scope, Send

from cluster.bench.arm_server import serve, take_output
from cluster.gateway.http_listening import AsgiServer, HttpPlace

EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"mock","choices":[{"index":0,"delta":{"content":" the"},"logprobs":null,"finish_reason":null}]}\n\n'
)
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class _Writer:
    """An ASGI application: events of `/N`, one in every step. Owns: the step that all streams wait for."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._loop = asyncio.get_running_loop()
        self._next_at = self._loop.time()
        self._waiting: list[asyncio.Future[None]] = []
        self._step()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        for number in range(int(scope["path"][1:])):
            if number:
                step = self._loop.create_future()
                self._waiting.append(step)
                await step
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    def _step(self) -> None:
        waiting, self._waiting = self._waiting, []
        for step in waiting:
            if not step.done():
                step.set_result(None)
        self._next_at = max(self._next_at + self._step_s, self._loop.time())
        self._loop.call_at(self._next_at, self._step)


async def _started(step_s: float) -> dict[str, object]:
    server = AsgiServer(HttpPlace("127.0.0.1", 0, "--port"))
    return {"http_port": await server.start(_Writer(step_s))}


def main() -> None:
    """Runs the arm until its input ends."""
    output = take_output()
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-ms", type=float, required=True)
    step_s = parser.parse_args().step_ms / 1000
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="sse", daemon=True).start()
    ready = asyncio.run_coroutine_threadsafe(_started(step_s), loop).result()
    serve(output, ready, {"cpu": lambda: {"cpu_s": time.process_time()}})


if __name__ == "__main__":
    main()
