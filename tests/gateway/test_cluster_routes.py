"""What routers and operators ask over HTTP: load, state, changes as they happen, and one request's trace."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from cluster.gateway.keys import Grant
from core.decisions import Decision, DecisionKind, Fact
from core.events import AttemptLost
from core.ids import attempt_id
from core.request import Request
from core.stats import BlockCounts
from tests.gateway.fake_cluster import STATS, TIMING, node, until
from tests.gateway.keyed import Keys
from tests.metrics.place import Place, Setting, observe

DECISION = Decision(1.0, DecisionKind.RATIO, "prompts wait", facts=(Fact("queued_tokens", 900.0),))


def test_the_load_of_every_node_is_told_and_adds_up() -> None:
    async def scenario(place: Place) -> None:
        quiet = replace(STATS, running_rows=1, blocks=BlockCounts(10, 10, 0, 0, 0, 0, 0, 0, 0))
        new = replace(node("n@3", "mixed"), stats=None)
        before = place.cluster.state
        place.cluster.state = replace(before, nodes=(before.nodes[0], replace(before.nodes[1], stats=quiet), new))
        told = (await place.client.get("/load")).json()
        assert told["nodes"][0] == {
            "node": "p",
            "id": "p@1",
            "role": "prefill",
            "num_running_reqs": 4,
            "num_waiting_reqs": 1 + 0,
            "num_used_tokens": 33 * 16,
            "max_total_num_tokens": 36 * 16,
            "num_waiting_uncached_tokens": 3,
            "token_usage": 33 / 36,
        }
        assert told["nodes"][2] == dict.fromkeys(told["nodes"][0]) | {
            "node": "n",
            "id": "n@3",
            "role": "mixed",
        }
        assert told["total"] == {
            "num_running_reqs": 5,
            "num_waiting_reqs": 2,
            "num_used_tokens": 33 * 16,
            "max_total_num_tokens": 46 * 16,
            "num_waiting_uncached_tokens": 6,
            "token_usage": 33 / 46,
            "num_open_reqs": 0,
        }
        place.cluster.state = replace(before, nodes=())
        assert (await place.client.get("/load")).json()["total"]["token_usage"] is None

    observe(scenario)


def test_the_cluster_is_told_with_numbers_for_numbers_and_null_for_what_is_absent() -> None:
    async def scenario(place: Place) -> None:
        place.operator.feed.put(DECISION)
        await place.complete()
        told = (await place.client.get("/cluster")).json()
        assert told["model"]["name"] == "tiny" and told["serving"] is True and told["wanted_nodes"] is None
        assert [it["role"] for it in told["nodes"]] == ["prefill", "decode"]
        assert told["nodes"][0]["blocks"]["capacity"] == 36 and told["nodes"][0]["kv_bytes_received"] == 1234
        assert told["decisions"][0]["facts"] == [{"name": "queued_tokens", "value": 900.0}]
        assert told["requests"][0]["usage"]["completion_tokens"] == 5
        assert told["requests"][0]["slo"] is None

    observe(scenario)


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, dict[str, object]]]:
    kind = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


def test_changes_are_told_as_they_happen_until_the_server_stops() -> None:
    async def scenario(place: Place) -> None:
        place.operator.feed.put(DECISION)
        async with place.client.stream("GET", "/cluster/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = _events(answer)
            kind, decision = await anext(events)
            assert (kind, decision["reason"], decision["number"]) == ("decision", "prompts wait", 1)
            kind, nodes = await anext(events)
            assert (kind, [it["role"] for it in nodes["nodes"]]) == ("nodes", ["prefill", "decode"])  # type: ignore[attr-defined]
            place.operator.feed.put(replace(DECISION, reason="they wait no more"))
            assert (await anext(events))[1]["number"] == 2
            place.cluster.state = replace(place.cluster.state, nodes=place.cluster.state.nodes[:1])
            assert (await anext(events))[1] == {"nodes": [{"node": "p", "id": "p@1", "role": "prefill"}]}
            place.gateway.drain()
            assert [event async for event in events] == []

    observe(scenario)


def test_a_request_is_traced_across_gateway_and_nodes_by_its_answers_id_or_by_its_own() -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.post(
            "/v1/completions",
            json={"model": "tiny", "prompt": "fox", "max_tokens": 5, "n": 2},
            headers={"x-request-id": "mine"},
        )
        await until(lambda: len(place.observation.ended) == 2)
        one = (await place.client.get(f"/trace/{answer.json()['id']}")).json()
        both = (await place.client.get("/trace/mine")).json()
        names = {it["pid"]: it["args"]["name"] for it in one["traceEvents"] if it["name"] == "process_name"}
        assert sorted(names.values()) == ["d", "gateway", "p"]
        spans = [it for it in one["traceEvents"] if it["ph"] == "X"]
        where = {it["name"]: names[it["pid"]] for it in spans}
        assert where["prefill"] == where["queue_prefill"] == "p"
        assert where["decode"] == where["handoff"] == where["reserve"] == where["queue_decode"] == "d"
        assert where["admit"] == "gateway"
        assert [it["dur"] for it in spans if it["name"] == "prefill"] == [pytest.approx(TIMING.prefill_s * 1e6)]
        ends = [it["ts"] + it["dur"] for it in spans]
        assert [it["ts"] for it in spans[1:]] == pytest.approx(ends[:-1])
        ended = place.observation.ended[0]
        assert spans[0]["ts"] == pytest.approx(ended.received_wall_s * 1e6)
        assert [it["name"] for it in one["traceEvents"] if it["ph"] == "i"] == ["first token"]
        assert len({it["tid"] for it in both["traceEvents"] if it["ph"] == "X"}) == 2

    observe(scenario)


def test_what_was_lost_with_an_earlier_attempt_lies_before_the_stages_of_the_last() -> None:
    async def scenario(place: Place) -> None:
        async def answer(request: Request) -> None:
            place.cluster.emit(request, 0, 1)
            await asyncio.sleep(0.05)
            place.cluster.give(AttemptLost(attempt_id(request.id, 1)))
            place.cluster.emit(request, 1, request.sampling.max_tokens, number=2)

        place.cluster.answer = answer
        told = await place.complete()
        spans = (await place.client.get(f"/trace/{told.json()['id']}")).json()["traceEvents"]
        names = [it["name"] for it in spans if it["ph"] == "X"]
        assert names[0] == "unaccounted" and names[-1] == "decode"

    observe(scenario)


def test_a_request_that_nobody_knows_is_not_found() -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.get("/trace/chatcmpl-nobody")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")

    observe(scenario)


def test_with_keys_load_and_state_are_an_operators_and_a_trace_its_tenants() -> None:
    keys = Keys(Grant("one", "acme"), Grant("two", "other"), Grant("boss", is_admin=True))

    async def scenario(place: Place) -> None:
        def sent_by(name: str) -> dict[str, str]:
            return {"authorization": keys.header(name)}

        body = {"model": "tiny", "prompt": "fox", "max_tokens": 3}
        told = await place.client.post("/v1/completions", json=body, headers=sent_by("one"))
        await until(lambda: len(place.observation.ended) == 1)
        trace = f"/trace/{told.json()['id']}"
        statuses = {
            (path, name): (await place.client.get(path, headers=sent_by(name))).status_code
            for path in ("/load", "/cluster", trace)
            for name in ("one", "two", "boss")
        }
        assert statuses == {
            ("/load", "one"): 403,
            ("/load", "two"): 403,
            ("/load", "boss"): 200,
            ("/cluster", "one"): 403,
            ("/cluster", "two"): 403,
            ("/cluster", "boss"): 200,
            (trace, "one"): 200,
            (trace, "two"): 404,
            (trace, "boss"): 200,
        }
        assert (await place.client.get("/cluster/events", headers=sent_by("one"))).status_code == 403
        assert (await place.client.get("/load")).status_code == 401

    observe(scenario, Setting(access=keys.settings))
