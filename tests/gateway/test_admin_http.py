"""The operators' HTTP port: it changes what the commands change, refuses what they refuse, and asks for their key."""

import re
from collections.abc import Awaitable, Callable

import httpx
import pytest

from cluster.gateway.access import Access
from cluster.gateway.admin_http import AdminHttp
from cluster.gateway.keys import Grant
from cluster.gateway.listening import Endpoint
from core.mix import mix_of
from tests.gateway.fake_operator import FakeOperator
from tests.gateway.keyed import Keys
from tests.openai.serving import Place, serve

Scenario = Callable[[FakeOperator, httpx.AsyncClient], Awaitable[None]]
ENDPOINTS = {"/cluster/ratio", "/nodes/{node}/mix", "/nodes/{node}/drain", "/flush_cache"}


def operating(scenario: Scenario, keys: Keys | None = None) -> None:
    async def run(place: Place) -> None:
        if keys is not None:
            place.gateway.access = Access(keys.settings)
        operator = FakeOperator(lambda: place.cluster.state)
        server = AdminHttp(place.gateway, operator, Endpoint())
        await server.start()
        try:
            async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as client:
                await scenario(operator, client)
        finally:
            await server.stop()

    serve(run)


def test_a_ratio_is_set_as_text_or_as_two_numbers_and_says_what_changes() -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        for body in ({"ratio": "1:1"}, {"prefill": 1, "decode": 1}):
            operator.mixes = {"p": mix_of("mixed", 512, 16), "d": mix_of("mixed", 512, 16)}
            answer = await client.post("/cluster/ratio", json=body)
            assert answer.status_code == 200
            assert answer.json() == {
                "nodes": [
                    {"node": "p", "was": "prefill", "role": "prefill"},
                    {"node": "d", "was": "decode", "role": "decode"},
                ]
            }
            assert operator.mixes == {"p": mix_of("prefill", 512, 16), "d": mix_of("decode", 512, 16)}

    operating(scenario)


def test_auto_gives_all_nodes_back_or_one() -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        answer = await client.post("/cluster/ratio", json={"ratio": "auto"})
        assert [(it["node"], it["role"]) for it in answer.json()["nodes"]] == [("p", "auto"), ("d", "auto")]
        answer = await client.post("/nodes/d@1/mix", json={"role": "auto"})
        assert answer.json() == {"nodes": [{"node": "d", "was": "decode", "role": "auto"}]}
        assert operator.lifted == [("p", "d"), ("d",)]

    operating(scenario)


def test_a_node_gets_a_role_with_the_budgets_that_it_had_where_none_is_named() -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        answer = await client.post("/nodes/d/mix", json={"role": "mixed", "prefill_tokens_per_step": 64})
        assert answer.json() == {"nodes": [{"node": "d", "was": "decode", "role": "mixed"}]}
        assert operator.mixes["d"] == mix_of("mixed", 64, 16)
        assert (await client.post("/nodes/p/mix", json={"role": "closed"})).status_code == 200
        assert operator.mixes["p"].role == "closed"

    operating(scenario)


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param", "says"),
    [
        ("/cluster/ratio", {}, 400, "invalid_request", "ratio", "prefill and decode"),
        ("/cluster/ratio", {"prefill": 1}, 400, "invalid_request", "ratio", "prefill and decode"),
        ("/cluster/ratio", {"ratio": "1:1", "prefill": 1, "decode": 1}, 400, "invalid_request", "ratio", "not both"),
        ("/cluster/ratio", {"ratio": "2:1"}, 400, "invalid_request", "ratio", "does not go into the 2 nodes"),
        ("/cluster/ratio", {"ratio": "0:2"}, 400, "invalid_request", "ratio", "both at least 1"),
        ("/cluster/ratio", {"prefill": -1, "decode": 3}, 400, "invalid_request", "ratio", "both at least 1"),
        ("/cluster/ratio", {"ratio": 2}, 400, "invalid_type", "ratio", "string"),
        ("/cluster/ratio", {"raito": "1:1"}, 400, "unknown_parameter", "raito", "not a field"),
        ("/nodes/x/mix", {"role": "decode"}, 404, "unknown_node", "node", "there are p, d"),
        ("/nodes/x/mix", {"role": "auto"}, 404, "unknown_node", "node", "there are p, d"),
        ("/nodes/p/mix", {}, 400, "invalid_request", "role", "is missing"),
        ("/nodes/p/mix", {"role": "colocated"}, 400, "invalid_request", "role", "mixed, closed, auto"),
        ("/nodes/p/mix", {"role": "mixed", "max_decode_rows": 0}, 400, "invalid_request", "max_decode_rows", "1 to"),
        ("/nodes/p/mix", {"role": "mixed", "max_decode_rows": 2**40}, 400, "invalid_request", "max_decode_rows", ""),
        ("/nodes/p/mix", {"role": "auto", "max_decode_rows": 9}, 400, "invalid_request", "max_decode_rows", "auto"),
        ("/nodes/p/mix", {"role": "decode"}, 409, "phase_uncovered", "role", "no node would prefill"),
        ("/nodes/x/drain", {}, 404, "unknown_node", "node", "there are p, d"),
        ("/nodes/d/drain", {}, 409, "phase_uncovered", "node", "no node would decode"),
        ("/nodes/d/drain", {"force": 1}, 400, "invalid_type", "force", "boolean"),
        ("/nodes/d/drain", {"timeout_s": 0}, 400, "invalid_request", "timeout_s", "above 0"),
        ("/nodes/d/drain", {"timeout_s": 3601}, 400, "invalid_request", "timeout_s", "3600"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field_and_changes_nothing(
    path: str, body: dict[str, object], status: int, code: str, param: str, says: str
) -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        before = dict(operator.mixes)
        answer = await client.post(path, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
        assert error["message"].startswith(param) and says in error["message"]
        assert (operator.mixes, operator.lifted, operator.drained) == (before, [], [])

    operating(scenario)


def test_a_node_that_never_had_a_budget_needs_one_named() -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        operator.mixes["d"] = mix_of("prefill", 512, 0)
        refused = (await client.post("/nodes/d/mix", json={"role": "decode"})).json()["error"]
        assert (refused["code"], refused["param"]) == ("invalid_request", "max_decode_rows")
        assert (await client.post("/nodes/d/mix", json={"role": "decode", "max_decode_rows": 4})).status_code == 200
        assert operator.mixes["d"] == mix_of("decode", 512, 4)

    operating(scenario)


def test_what_leaves_a_phase_to_nobody_can_be_forced() -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        assert (await client.post("/nodes/p/mix", json={"role": "decode", "force": True})).status_code == 200
        assert operator.mixes["p"].role == "decode"
        answer = await client.post("/nodes/d/drain", json={"force": True, "for_restart": True})
        assert (answer.status_code, answer.json()) == (200, {"node": "d", "num_left": 3})
        assert (operator.drained, operator.for_restart) == (["d"], [True])

    operating(scenario)


def test_a_drain_that_takes_too_long_says_so_and_is_not_to_be_tried_again() -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        operator.drain_s = 30
        answer = await client.post("/nodes/d/drain", json={"force": True, "timeout_s": 0.05})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert answer.headers["x-should-retry"] == "false"
        assert operator.drained == ["d"]

    operating(scenario)


def test_a_flush_tells_each_nodes_blocks_and_null_for_one_that_did_not_answer() -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        answer = await client.post("/flush_cache", json={})
        nodes = [{"node": "p", "num_blocks": 7}, {"node": "d", "num_blocks": None}]
        assert (answer.status_code, answer.json()) == (200, {"nodes": nodes, "num_blocks": 7})
        assert (await client.post("/flush_cache", json={"x": 1})).json()["error"]["code"] == "unknown_parameter"
        assert (await client.post("/flush_cache")).status_code == 415

    operating(scenario)


def test_only_an_operators_key_opens_the_port_once_there_is_one() -> None:
    keys = Keys(Grant("user"), Grant("operator", is_admin=True))

    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        for headers, status in (
            ({}, 401),
            ({"authorization": "Bearer nonsense"}, 401),
            ({"authorization": keys.header("user")}, 403),
        ):
            for path in (
                "/cluster/ratio",
                "/nodes/p/mix",
                "/nodes/p/drain",
                "/flush_cache",
                "/docs",
                "/openapi.json",
                "/nope",
            ):
                answer = await client.post(path, json={"role": "auto", "force": True}, headers=headers)
                assert answer.status_code == status, path
        assert (operator.lifted, operator.drained) == ([], [])
        mine = {"authorization": keys.header("operator")}
        assert (await client.post("/nodes/p/mix", json={"role": "auto"}, headers=mine)).status_code == 200
        assert operator.lifted == [("p",)]

    operating(scenario, keys)


def test_a_page_of_the_world_cannot_change_a_cluster_that_asks_for_no_key() -> None:
    """A browser sends such a page's POST without asking where its type is one of a form's."""

    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", None):
            headers = {} if kind is None else {"content-type": kind}
            answer = await client.post("/nodes/d/drain", content=b'{"force": true}', headers=headers)
            assert answer.status_code == 415
        answer = await client.post("/nodes/d/drain", json={"force": True}, headers={"host": "evil.example"})
        assert answer.status_code == 400
        assert (await client.options("/nodes/d/drain")).status_code == 405
        assert operator.drained == []

    operating(scenario)


def test_the_port_describes_itself_and_serves_nothing_else() -> None:
    async def scenario(operator: FakeOperator, client: httpx.AsyncClient) -> None:
        document = (await client.get("/openapi.json")).json()
        assert set(document["paths"]) == ENDPOINTS
        for methods in document["paths"].values():
            assert methods["post"]["summary"] and methods["post"]["description"]
            assert {"400", "401", "403", "404", "409"} <= set(methods["post"]["responses"])
        schemas = document["components"]["schemas"]
        assert all(name in schemas for name in re.findall(r"#/components/schemas/(\w+)", str(document)))
        page = (await client.get("/docs")).text
        assert "timeout_s" in page and f"curl {client.base_url}".rstrip("/") in page
        assert (await client.post("/v1/completions", json={"prompt": "fox"})).status_code == 404
        assert (await client.get("/nodes/d/mix")).status_code == 405

    operating(scenario)
