"""Health, readiness, version, models, tokens."""

import asyncio
from importlib.metadata import version

import pytest

from cluster.gateway.cluster_state import ClusterState
from core.errors import ErrorInfo
from core.goodput import Outcome
from tests.gateway.fake_cluster import MAX_MODEL_LEN, node, until
from tests.openai.asking import TEXT, client_of, says
from tests.openai.serving import Place, Setting, serve
from tests.openai.test_chat import TWO_ROLES


def test_health_lives_while_readiness_follows_the_nodes_and_the_drain() -> None:
    async def scenario(place: Place) -> None:
        for path in ("/health", "/ready", "/ping"):
            assert (await place.client.get(path)).status_code == 200
        place.cluster.state = ClusterState((node("p@1", "prefill"),))
        refused = await place.client.get("/ready")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        place.cluster.state = ClusterState((node("m@1", "mixed"),))
        assert (await place.client.get("/ready")).status_code == 200
        place.gateway.drain()
        assert (await place.client.get("/ready")).json()["error"]["code"] == "draining"
        assert (await place.client.get("/health")).status_code == 200

    serve(scenario)


def test_a_deep_probe_generates_a_token_and_says_why_it_cannot() -> None:
    async def scenario(place: Place) -> None:
        assert (await place.client.get("/health?deep=1")).json() == {"status": "ok"}
        assert place.cluster.arrived[0].sampling.max_tokens == 1
        place.cluster.answer = place.cluster.failing(Outcome.FAILED, ErrorInfo("worker_lost", "gone"))
        refused = await place.client.get("/health?deep=1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "worker_lost")

    serve(scenario)


def test_a_prober_may_ask_for_the_head_alone() -> None:
    async def scenario(place: Place) -> None:
        for path in ("/health", "/ready", "/ping", "/version"):
            whole, head = await place.client.get(path), await place.client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == whole.headers["content-length"]
        place.cluster.state = ClusterState(())
        assert (await place.client.head("/ready")).status_code == 503

    serve(scenario)


def test_the_version_is_the_installed_one() -> None:
    async def scenario(place: Place) -> None:
        assert (await place.client.get("/version")).json() == {"version": version("penstock")}

    serve(scenario)


def test_the_served_model_is_listed_and_found_by_name() -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            (listed,) = (await client.models.list()).data
            assert await client.models.retrieve("tiny") == listed
        assert (listed.id, listed.owned_by, listed.object) == ("tiny", "penstock", "model")
        assert listed.model_extra == {"root": "tiny", "parent": None, "max_model_len": MAX_MODEL_LEN}
        for name, status in (
            ("gpt-9", 404),
            ("a/b", 404),
            ("", 404),
            ("%2e%2e", 400),
            ("x" * 129, 400),
            ("a%00b", 400),
        ):
            answer = await place.client.get(f"/v1/models/{name}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, "model_not_found"), name

    serve(scenario)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_text_becomes_tokens_and_text_again(prefix: str) -> None:
    async def scenario(place: Place) -> None:
        ids = place.tokenizer.encode(TEXT)
        told = (await place.client.post(f"{prefix}/tokenize", json={"prompt": TEXT, "return_token_strs": True})).json()
        assert (told["tokens"], told["count"], told["max_model_len"]) == (ids, len(ids), MAX_MODEL_LEN)
        assert told["token_strs"][0] == "the"
        back = await place.client.post(f"{prefix}/detokenize", json={"tokens": ids, "model": "tiny"})
        assert back.json() == {"prompt": TEXT}

    serve(scenario)


def test_messages_become_the_tokens_that_a_chat_would_send() -> None:
    async def scenario(place: Place) -> None:
        for is_open, end in ((True, "<go>"), (False, "")):
            fields = {"messages": says("fox"), "add_generation_prompt": is_open}
            told = (await place.client.post("/tokenize", json=fields)).json()
            assert place.tokenizer.decode(told["tokens"]) == f"<user>fox{end}"

    serve(scenario, Setting(template=TWO_ROLES))


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        ("/tokenize", {}, "invalid_request", "prompt"),
        ("/tokenize", {"prompt": "a", "messages": says("a")}, "invalid_request", "prompt"),
        ("/tokenize", {"prompt": ""}, "empty_prompt", "prompt"),
        ("/tokenize", {"prompt": "a", "model": "x"}, "model_not_found", "model"),
        ("/tokenize", {"prompt": "x" * 100_000}, "context_length_exceeded", "prompt"),
        ("/tokenize", {"messages": [], "model": "tiny"}, "empty_prompt", "messages"),
        ("/detokenize", {"tokens": [300]}, "invalid_token_id", "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "invalid_token_id", "tokens[0]"),
        ("/detokenize", {"tokens": [2**80]}, "invalid_token_id", "tokens"),
        ("/detokenize", {"tokens": [1] * 513}, "context_length_exceeded", "tokens"),
        ("/detokenize", {}, "invalid_request", "tokens"),
    ],
)
def test_what_cannot_be_made_into_tokens_or_text_is_named(path: str, fields: object, code: str, param: str) -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.post(path, json=fields)
        assert answer.status_code in (400, 404)
        assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)

    serve(scenario)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/score", "/v1/rerank", "/v1/audio/speech"])
def test_what_other_kinds_of_models_are_for_is_not_found_with_the_reason(path: str) -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.post(path, json={"model": "tiny", "input": "a"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
        assert "is not served: this model writes text" in answer.json()["error"]["message"]

    serve(scenario)


@pytest.mark.parametrize("name", ["request_id", "rid"])
def test_open_requests_are_ended_by_their_name_and_no_others(name: str) -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        body = {"model": "tiny", "prompt": "fox", "max_tokens": 3}
        asked = [
            asyncio.create_task(place.client.post("/v1/completions", json=body, headers={"x-request-id": each}))
            for each in ("mine", "mine", "yours")
        ]
        await until(lambda: place.gateway.streams.num_open == 3)
        told = await place.client.post("/abort_request", json={name: "mine"})
        assert told.json() == {"num_aborted": 2}
        assert [(await each).status_code for each in asked[:2]] == [499, 499]
        assert place.gateway.streams.num_open == 1
        assert (await place.client.post("/abort_request", json={name: "mine"})).json() == {"num_aborted": 0}
        assert (await place.client.post("/abort_request", json={})).status_code == 400
        await place.client.post("/abort_request", json={name: "yours"})
        await asked[2]

    serve(scenario)
