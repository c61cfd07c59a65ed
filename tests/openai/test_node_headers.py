"""Which nodes made an answer, where the server is told to tell it."""

import asyncio
from dataclasses import replace

from cluster.gateway.openai.config import HttpConfig
from cluster.metrics.routes_seen import NOWHERE, RequestNodes
from core.errors import ErrorInfo
from core.goodput import Outcome
from core.ids import RequestId
from core.request import Request
from tests.openai.asking import CHAT, COMPLETIONS, RESPONSES, ask, says
from tests.openai.serving import Place, Scenario, Setting, serve

FOX = {"prompt": "fox", "max_tokens": 3}
BODIES: dict[str, dict[str, object]] = {
    COMPLETIONS: FOX,
    CHAT: {"messages": says("fox"), "max_tokens": 3},
    RESPONSES: {"input": "fox", "max_output_tokens": 3},
    "/v1/messages": {"messages": says("fox"), "max_tokens": 3, "model": "tiny"},
}


class Routes:
    """Requests run on `p-1`, `p-2`, … in the order in which they are asked about first."""

    def __init__(self) -> None:
        self.known: dict[RequestId, RequestNodes] = {}

    def __call__(self, request: RequestId) -> RequestNodes:
        return self.known.setdefault(request, RequestNodes(f"p-{len(self.known) + 1}", "d-0"))


def told(answer: object) -> tuple[str | None, str | None]:
    headers = answer.headers  # type: ignore[attr-defined]
    return headers.get("x-prefill-node"), headers.get("x-decode-node")


def with_routes(scenario: Scenario, config: HttpConfig | None = None) -> None:
    serve(scenario, Setting(config=config or HttpConfig(port=0), nodes_of=Routes()))


def test_whole_answers_and_streams_of_every_interface_tell_their_nodes() -> None:
    async def scenario(place: Place) -> None:
        answers = [
            await ask(place, path, **body, stream=stream) for path, body in BODIES.items() for stream in (False, True)
        ]
        assert [answer.status_code for answer in answers] == [200] * 8
        assert [told(answer) for answer in answers] == [(f"p-{i + 1}", "d-0") for i in range(8)]

    with_routes(scenario)


def test_of_several_choices_each_node_is_told_once() -> None:
    async def scenario(place: Place) -> None:
        assert told(await ask(place, COMPLETIONS, **FOX, n=3)) == ("p-1, p-2, p-3", "d-0")

    with_routes(scenario)


def test_a_request_that_fails_after_it_was_routed_tells_them_too_and_one_at_the_door_has_none() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.failing(Outcome.FAILED, ErrorInfo("worker_lost", "gone"))
        answer = await ask(place, COMPLETIONS, **FOX)
        assert (answer.status_code, told(answer)) == (503, ("p-1", "d-0"))
        assert told(await ask(place, COMPLETIONS, prompt="")) == (None, None)

    with_routes(scenario)


def test_a_stream_that_begins_with_a_comment_before_there_is_a_route_has_none() -> None:
    routes: dict[RequestId, RequestNodes] = {}

    async def scenario(place: Place) -> None:
        echo = place.cluster.answer

        async def answer(request: Request) -> None:
            await asyncio.sleep(0.3)
            routes[request.id] = RequestNodes("p", "d")
            await echo(request)

        place.cluster.answer = answer
        late = await ask(place, COMPLETIONS, **FOX, stream=True)
        assert (late.status_code, told(late)) == (200, (None, None))
        assert late.text.startswith(": keep-alive")
        assert told(await ask(place, COMPLETIONS, **FOX)) == ("p", "d"), "whole answers begin at their end"

    config = replace(HttpConfig(port=0), keep_alive_s=0.05)
    serve(scenario, Setting(config=config, nodes_of=lambda request: routes.get(request, NOWHERE)))


def test_without_the_flag_nothing_is_told() -> None:
    async def scenario(place: Place) -> None:
        for stream in (False, True):
            assert told(await ask(place, COMPLETIONS, **FOX, stream=stream)) == (None, None)

    serve(scenario)
