"""Requests made up from the interface's own description, sound and unsound ones: none brings a server error."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from cluster.gateway.limits import Limits
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


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a thread of its own, for clients that block."""
    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    urls: list[str] = []
    batches = keeping(tmp_path_factory.mktemp("batches")).config

    async def serve_until_stopped() -> None:
        async with running(Setting(limits=Limits(max_deadline_s=5), config=batches)) as place:
            urls.append(place.url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve_until_stopped()), name="http server")
    thread.start()
    started.wait(20)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_no_request_made_up_from_the_description_brings_a_server_error(url: str) -> None:
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: list[tuple[str, int]] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        has_body = bool(list(operation.body))  # nothing can be wrong with what takes nothing
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if has_body else (GenerationMode.POSITIVE,):

            @settings(max_examples=NUM_EACH, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                answer = case.call_and_validate(checks=[not_a_server_error], timeout=30)
                statuses.append((case.operation.path, answer.status_code))

            check()
    seen = {status for _, status in statuses}
    assert {path for path, _ in statuses} == ENDPOINTS | BATCH_ENDPOINTS
    assert {200, 400} <= seen <= {200, 400, 404, 405, 406, 415}, seen
    served = {path for path, status in statuses if status == 200}
    assert {"/v1/models", "/tokenize", "/health"} <= served
    assert served & {"/v1/chat/completions", "/v1/completions", "/v1/responses"}, "some made-up request is sound"
    assert len(statuses) > 800
