"""Requests made up from the interface's own description, sound and unsound ones: none brings a server error."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from cluster.gateway.admin_http import AdminHttp
from cluster.gateway.limits import Limits
from cluster.gateway.listening import Endpoint
from tests.gateway.fake_operator import FakeOperator
from tests.gateway.test_admin_http import ENDPOINTS as ADMIN_ENDPOINTS
from tests.openai.batching import keeping
from tests.openai.serving import Setting, running
from tests.openai.test_description import ENDPOINTS

pytestmark = pytest.mark.slow

NUM_EACH = 60
BATCH_ENDPOINTS = {
    "/v1/files",
    "/v1/files/{file_id}",
    "/v1/files/{file_id}/content",
    "/v1/batches",
    "/v1/batches/{batch_id}",
    "/v1/batches/{batch_id}/cancel",
}


@contextlib.contextmanager
def on_a_thread(place_of: AbstractAsyncContextManager[str]) -> Iterator[str]:
    """A server for clients that block; its URL."""
    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    urls: list[str] = []

    async def serve_until_stopped() -> None:
        async with place_of as url:
            urls.append(url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve_until_stopped()), name="http server")
    thread.start()
    started.wait(20)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextlib.asynccontextmanager
async def public(setting: Setting) -> AsyncIterator[str]:
    async with running(setting) as place:
        yield place.url


@contextlib.asynccontextmanager
async def operators() -> AsyncIterator[str]:
    async with running() as place:
        server = AdminHttp(place.gateway, FakeOperator(lambda: place.cluster.state), Endpoint())
        await server.start()
        yield server.url
        await server.stop()


def answers_to_made_up(url: str) -> list[tuple[str, int]]:
    """Path and status of every answer, to sound and unsound requests."""
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: list[tuple[str, int]] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        has_body = bool(list(operation.body))  # nothing can be wrong with what takes nothing
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if has_body else (GenerationMode.POSITIVE,):

            @settings(max_examples=NUM_EACH, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                statuses.append((case.operation.path, case.call(timeout=30).status_code))

            check()
    return statuses


def test_no_request_made_up_from_the_description_brings_a_server_error(tmp_path: Path) -> None:
    with on_a_thread(public(Setting(limits=Limits(max_deadline_s=5), config=keeping(tmp_path).config))) as url:
        statuses = answers_to_made_up(url)
    seen = {status for _, status in statuses}
    assert {path for path, _ in statuses} == ENDPOINTS | BATCH_ENDPOINTS
    assert {200, 400} <= seen <= {200, 400, 404, 405, 406, 415}, seen
    served = {path for path, status in statuses if status == 200}
    assert {"/v1/models", "/tokenize", "/health"} <= served
    assert served & {"/v1/chat/completions", "/v1/completions", "/v1/responses"}, "some made-up request is sound"
    assert len(statuses) > 800


def test_none_to_the_operators_port_does_and_a_drain_that_is_given_no_time_is_told_so() -> None:
    with on_a_thread(operators()) as url:
        statuses = answers_to_made_up(url)
    assert {path for path, _ in statuses} == ADMIN_ENDPOINTS
    seen = {status for _, status in statuses}
    assert {200, 400} <= seen <= {200, 400, 404, 405, 406, 409, 415, 504}, seen
    assert {path for path, status in statuses if status == 504} <= {"/nodes/{node}/drain"}
    assert len(statuses) > 300
