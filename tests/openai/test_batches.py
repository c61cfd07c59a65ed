"""Batches over HTTP: uploaded, answered as the offline class, told in OpenAI's shapes; each key sees its own."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from cluster.gateway.keys import AccessSettings, Grant, Quota, StoredKey, digest_of
from core.errors import ErrorInfo
from core.goodput import Outcome
from core.request import Request
from tests.gateway.fake_cluster import until
from tests.openai.asking import client_of, expected
from tests.openai.batching import CHAT, begin, chat_line, ended, jsonl, keeping, lines_of, upload
from tests.openai.serving import USUAL, Place, serve


def keyed(*names: str, quota: Quota | None = None) -> AccessSettings:
    return AccessSettings(
        tuple(StoredKey(digest_of(f"psk-{name}"), Grant(name, name, quota=quota or Quota())) for name in names)
    )


def test_the_official_client_runs_a_batch_from_upload_to_result(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        async with client_of(place) as client:
            file = await client.files.create(file=("in.jsonl", jsonl(map(chat_line, range(30)))), purpose="batch")
            assert (file.purpose, file.filename, file.status) == ("batch", "in.jsonl", "processed")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"team": "a"}
            )
            assert batch.status in ("validating", "in_progress")
            assert batch.expires_at == batch.created_at + 24 * 3600
            while batch.status != "completed":
                await asyncio.sleep(0.01)
                batch = await client.batches.retrieve(batch.id)
            assert batch.request_counts is not None and batch.usage is not None
            assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
                30,
                30,
                0,
            )
            assert (batch.metadata, batch.error_file_id, batch.usage.output_tokens) == ({"team": "a"}, None, 150)
            assert batch.output_file_id is not None
            lines = [json.loads(line) for line in (await client.files.content(batch.output_file_id)).text.splitlines()]
            assert [it.id async for it in client.batches.list()] == [batch.id]
            assert {it.id async for it in client.files.list(purpose="batch_output")} == {batch.output_file_id}
            assert (await client.files.delete(file.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(file.id)
        assert sorted(line["custom_id"] for line in lines) == sorted(f"line-{number}" for number in range(30))
        for line in lines:
            number = line["custom_id"].removeprefix("line-")
            assert line["response"]["status_code"] == 200 and line["error"] is None
            text = line["response"]["body"]["choices"][0]["message"]["content"]
            assert text == expected(place, f"the fox {number}", 5)

    serve(scenario, keeping(tmp_path))


def test_every_line_is_of_the_offline_class_whatever_it_names(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        lines = [chat_line(0), chat_line(1, priority=9), chat_line(2, slo_class="standard", service_tier="priority")]
        await ended(place, await begin(place, jsonl(lines)))
        assert [request.priority for request in place.cluster.arrived] == [-10] * 3

    serve(scenario, keeping(tmp_path))


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/responses"])
def test_the_other_endpoints_are_served_too(tmp_path: Path, endpoint: str) -> None:
    async def scenario(place: Place) -> None:
        prompt = {"prompt": "the fox"} if endpoint == "/v1/completions" else {"input": "the fox"}
        lines = [{"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "tiny", **prompt}}]
        batch = await ended(place, await begin(place, jsonl(lines), endpoint))
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
        (line,) = await lines_of(place, batch["output_file_id"])
        assert line["response"]["body"]["object"] in ("text_completion", "response")
        assert batch["usage"]["output_tokens"] > 0

    serve(scenario, keeping(tmp_path))


def test_a_line_that_is_refused_stands_in_the_error_file_with_its_status(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        lines = [chat_line(0), chat_line(1, temperature=9), chat_line(2, model="other"), chat_line(3)]
        batch = await ended(place, await begin(place, jsonl(lines)))
        assert (batch["status"], batch["request_counts"]) == (
            "completed",
            {"total": 4, "completed": 2, "failed": 2},
        )
        errors = {line["custom_id"]: line["response"] for line in await lines_of(place, batch["error_file_id"])}
        assert {name: it["status_code"] for name, it in errors.items()} == {"line-1": 400, "line-2": 404}
        assert errors["line-1"]["body"]["error"]["param"] == "temperature"
        assert {line["custom_id"] for line in await lines_of(place, batch["output_file_id"])} == {"line-0", "line-3"}

    serve(scenario, keeping(tmp_path))


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([b'{"custom_id": \n'], "invalid_json", 1),
        ([jsonl([chat_line(0)]), jsonl([chat_line(0)])], "duplicate_custom_id", 2),
        ([jsonl([chat_line(0) | {"url": "/v1/completions"}])], "invalid_request", 1),
        ([jsonl([chat_line(0) | {"url": "/admin"}])], "invalid_request", 1),
        ([jsonl([chat_line(0) | {"method": "GET"}])], "invalid_request", 1),
        ([b"\n", jsonl([chat_line(0) | {"body": []}])], "invalid_type", 2),
        ([jsonl([chat_line(0) | {"more": 1}])], "unknown_parameter", 1),
        ([jsonl([chat_line(0, stream=True)])], "unsupported_parameter", 1),
        ([b"\n \n"], "empty_file", None),
    ],
)
def test_an_unsound_input_fails_as_a_whole_and_names_the_line(
    tmp_path: Path, lines: list[bytes], code: str, line: int | None
) -> None:
    async def scenario(place: Place) -> None:
        batch = await ended(place, await begin(place, b"".join(lines)))
        assert batch["status"] == "failed"
        (problem,) = batch["errors"]["data"]
        assert (problem["code"], problem["line"]) == (code, line)
        assert place.cluster.arrived == []

    serve(scenario, keeping(tmp_path))


def test_what_refuses_a_line_and_may_pass_is_asked_again(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        refused = set[str]()
        overloaded = place.cluster.failing(Outcome.REFUSED, ErrorInfo("overloaded", "no room", retry_after_s=0.01))

        async def answer(request: Request) -> None:
            key = str(request.token_ids)
            await (place.cluster.echo if key in refused else overloaded)(request)
            refused.add(key)

        place.cluster.answer = answer
        batch = await ended(place, await begin(place, jsonl(map(chat_line, range(3)))))
        assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        assert len(place.cluster.arrived) == 6

    serve(scenario, keeping(tmp_path))


def test_a_request_that_takes_nodes_down_is_not_sent_to_them_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.batches.asking.FIRST_WAIT_S", 0.01)

    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.failing(Outcome.FAILED, ErrorInfo("worker_lost", "its node died"))
        batch = await ended(place, await begin(place, jsonl([chat_line(0)])))
        (line,) = await lines_of(place, batch["error_file_id"])
        assert line["response"]["body"]["error"]["code"] == "worker_lost"
        assert len(place.cluster.arrived) == 3

    serve(scenario, keeping(tmp_path))


def test_no_more_lines_are_at_work_than_the_limit_and_all_are_answered(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        most, are_full = 0, asyncio.Event()

        async def answer(request: Request) -> None:
            nonlocal most
            most = max(most, place.gateway.streams.num_open)
            if most == 3:
                are_full.set()
            await are_full.wait()
            await place.cluster.echo(request)

        place.cluster.answer = answer
        inputs = [jsonl(map(chat_line, range(first, first + 40))) for first in (0, 100)]
        batches = [await begin(place, data) for data in inputs]
        for batch in batches:
            assert (await ended(place, batch))["request_counts"]["completed"] == 40
        assert most == 3

    serve(scenario, keeping(tmp_path, max_concurrent=3))


def test_batches_and_their_requests_are_counted_by_where_they_are(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        batches, may_go = place.server.batches, asyncio.Event()
        assert batches is not None

        async def answer(request: Request) -> None:
            await may_go.wait()
            await place.cluster.echo(request)

        place.cluster.answer = answer
        batch = await begin(place, jsonl([*map(chat_line, range(5)), chat_line(5, n=0)]))
        await until(lambda: batches.counts.num_at_work == 3)
        now = batches.counts
        assert (now.num_waiting, now.num_answered, now.num_failed) == (3, 0, 0)
        assert [(status.value, number) for status, number in now.statuses if number] == [("in_progress", 1)]
        may_go.set()
        await ended(place, batch)
        now = batches.counts
        assert (now.num_waiting, now.num_at_work, now.num_answered, now.num_failed) == (0, 0, 5, 1)
        assert [(status.value, number) for status, number in now.statuses if number] == [("completed", 1)]
        assert len(now.statuses) == 8

    serve(scenario, keeping(tmp_path, max_concurrent=3))


def test_a_cancelled_batch_keeps_what_it_has_and_tells_every_other_line(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        async def answer(request: Request) -> None:
            if request in place.cluster.arrived[:2]:
                await place.cluster.echo(request)

        place.cluster.answer = answer
        batch = await begin(place, jsonl(map(chat_line, range(10))))
        while len(place.cluster.arrived) < 6:
            await asyncio.sleep(0.01)
        answered = await place.client.post(f"/v1/batches/{batch['id']}/cancel")
        assert answered.json()["status"] == "cancelling"
        batch = await ended(place, batch)
        assert (batch["status"], batch["request_counts"]) == (
            "cancelled",
            {"total": 10, "completed": 2, "failed": 8},
        )
        told = [
            it["custom_id"] for name in ("output", "error") for it in await lines_of(place, batch[f"{name}_file_id"])
        ]
        assert sorted(told) == sorted(f"line-{number}" for number in range(10))
        again = await place.client.post(f"/v1/batches/{batch['id']}/cancel")
        assert (again.status_code, again.json()["error"]["code"]) == (400, "invalid_request")

    serve(scenario, keeping(tmp_path, max_concurrent=4))


def test_a_key_sees_only_its_own_files_and_batches(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        batch = await begin(place, jsonl([chat_line(0)]), key="psk-a")
        batch = await ended(place, batch, key="psk-a")
        other = {"authorization": "Bearer psk-b"}
        for path in (
            f"/v1/files/{batch['input_file_id']}",
            f"/v1/files/{batch['output_file_id']}/content",
            f"/v1/batches/{batch['id']}",
        ):
            assert (await place.client.get(path, headers=other)).status_code == 404
            assert (await place.client.get(path, headers={"authorization": "Bearer psk-a"})).status_code == 200
            assert (await place.client.get(path)).status_code == 401
        assert (await place.client.get("/v1/files", headers=other)).json()["data"] == []
        assert (await place.client.get("/v1/batches", headers=other)).json()["data"] == []
        asked = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        assert (await place.client.post("/v1/batches", json=asked, headers=other)).status_code == 404
        deleted = await place.client.delete(f"/v1/files/{batch['input_file_id']}", headers=other)
        assert deleted.status_code == 404
        assert place.cluster.arrived[0].tenant == "a"

    serve(scenario, replace(keeping(tmp_path), access=keyed("a", "b")))


def test_lines_wait_for_their_keys_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.gateway.access.RETRY_CONCURRENT_S", 0.01)
    monkeypatch.setattr("cluster.batches.asking.FIRST_WAIT_S", 0.01)

    async def scenario(place: Place) -> None:
        batch = await begin(place, jsonl(map(chat_line, range(6))), key="psk-a")
        batch = await ended(place, batch, key="psk-a")
        assert batch["request_counts"] == {"total": 6, "completed": 6, "failed": 0}

    serve(scenario, replace(keeping(tmp_path), access=keyed("a", quota=Quota(max_concurrent=1))))


def test_lines_of_a_key_that_is_gone_or_has_ended_are_refused_and_not_asked(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        batch = await begin(place, jsonl(map(chat_line, range(5))), key="psk-a")
        await until(lambda: len(place.cluster.arrived) == 2)
        place.gateway.access.reload(keyed("b"))
        for request in place.cluster.arrived[:2]:
            place.cluster.emit(request, 0, 5)
        record = tmp_path / "batches" / f"{batch['id']}.json"
        await until(lambda: json.loads(record.read_text())["status"] == "completed")
        told = json.loads(record.read_text())
        assert (told["num_answered"], told["num_failed"], len(place.cluster.arrived)) == (2, 3, 2)
        errors = (tmp_path / "files" / f"{told['error_file']}.jsonl").read_text()
        assert errors.count("invalid_api_key") == 3
        ended_at = Grant("c", "c", expires_at=10.0)
        place.gateway.access.reload(AccessSettings((StoredKey(digest_of("psk-c"), ended_at),)))
        assert place.gateway.access.holder("c", 9.0) is not None
        assert place.gateway.access.holder("c", 10.0) is None
        assert place.gateway.access.holder("", 9.0) is None

    serve(scenario, replace(keeping(tmp_path, max_concurrent=2), access=keyed("a")))


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"completion_window": "1d"}, "invalid_request", "completion_window"),
        ({"completion_window": "169h"}, "invalid_request", "completion_window"),
        ({"endpoint": "/v1/embeddings"}, "invalid_request", "endpoint"),
        ({"input_file_id": "../lock"}, "not_found", "input_file_id"),
        ({"more": 1}, "unknown_parameter", "more"),
        ({"metadata": {"a": "b" * 513}}, "invalid_request", "metadata"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_its_field(
    tmp_path: Path, asked: dict[str, object], code: str, param: str
) -> None:
    async def scenario(place: Place) -> None:
        file = (await upload(place, jsonl([chat_line(0)]))).json()
        usual = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        answer = await place.client.post("/v1/batches", json=usual | asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404 if code == "not_found" else 400, code, param)

    serve(scenario, keeping(tmp_path))


def test_a_file_that_a_batch_reads_is_not_deleted(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        batch = await begin(place, jsonl([chat_line(0)]))
        answer = await place.client.delete(f"/v1/files/{batch['input_file_id']}")
        assert (answer.status_code, batch["id"] in answer.text) == (400, True)
        await place.client.post(f"/v1/batches/{batch['id']}/cancel")
        await ended(place, batch)
        assert (await place.client.delete(f"/v1/files/{batch['input_file_id']}")).status_code == 200

    serve(scenario, keeping(tmp_path))


def test_without_a_batch_folder_the_paths_say_so() -> None:
    async def scenario(place: Place) -> None:
        for path in ("/v1/files", "/v1/files/x/content", "/v1/batches", "/v1/batches/x/cancel"):
            answer = await place.client.post(path)
            assert (answer.status_code, "--batch-dir" in answer.json()["error"]["message"]) == (404, True)

    serve(scenario, USUAL)
