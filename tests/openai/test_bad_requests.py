"""Bad input over HTTP: every row gets exactly its status, code and field, and harms nobody."""

import asyncio
import json
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest

from cluster.gateway.errors_wire import HTTP_ROWS, ROWS
from cluster.gateway.limits import Limits
from cluster.gateway.openai.errors import HttpError
from core.errors import ErrorInfo
from core.goodput import Outcome
from tests.gateway.bad_inputs import FAILURES, INPUTS, Failure
from tests.gateway.fake_cluster import MAX_MODEL_LEN
from tests.openai.asking import COMPLETIONS, ask, chunks_of, client_of, expected, says
from tests.openai.bad_requests import HTTP_ONLY, NOT_IN_JSON, BadRequest, Told, completion, told_in_json
from tests.openai.serving import Place, Scenario, Setting, serve, shared

TOLD = told_in_json()
Run = Callable[[Scenario], None]
JSON = {"content-type": "application/json"}
FAR_TOO_LARGE = 17 * 1024 * 1024


@pytest.fixture(scope="module")
def usual() -> Iterator[Run]:
    """Runs scenarios against one server, for those that leave nothing behind."""
    with shared() as run:
        yield run


def check(answer: httpx.Response, status: int, code: str, param: str | None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 300
    assert param is None or error["message"].startswith(param)
    assert answer.headers["x-request-id"]
    kinds = {401: "authentication_error", 403: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    assert error["type"] == kinds.get(status, "invalid_request_error" if status < 499 else "server_error")


def test_the_tables_are_whole() -> None:
    assert len(HTTP_ONLY) == 77
    assert len({bad.name for bad in HTTP_ONLY}) == len(HTTP_ONLY)
    unsaid = {bad.name for bad in INPUTS} - {told.bad.name for told in TOLD}
    cannot_be_parsed = {
        name for name in unsaid - NOT_IN_JSON if "UTF-8" in name or "protobuf" in name or "surrogate" in name
    }
    assert unsaid == NOT_IN_JSON | cannot_be_parsed
    codes = {bad.code for bad in HTTP_ONLY}
    elsewhere = {"bad_request_line", "read_timeout", "headers_too_large"}
    assert {row.code for row in HTTP_ROWS} - codes == elsewhere
    assert not {row.code for row in HTTP_ROWS} & {row.code for row in ROWS}
    numbers = {bad.row for bad in HTTP_ONLY} | {told.bad.row for told in TOLD} | {failure.row for failure in FAILURES}
    in_other_files = {4, 5, 8, 35, 46, 47, 48, 50, 51}
    assert set(range(1, 53)) - numbers == in_other_files | {49}


@pytest.mark.parametrize("told", TOLD, ids=lambda told: f"{told.bad.row} {told.bad.name}")
def test_what_grpc_refuses_http_refuses_with_the_same_code_and_field(told: Told, usual: Run) -> None:
    async def scenario(place: Place) -> None:
        headers = {name: value.encode() for name, value in told.headers.items()}
        answer = await place.client.post(COMPLETIONS, content=told.body, headers=headers)
        check(answer, told.status, told.bad.code, told.param)
        assert place.cluster.arrived == []

    bad = told.bad
    setting = Setting(limits=bad.limits, max_model_len=bad.max_model_len, access=bad.access)
    if setting == Setting():
        usual(scenario)
    else:
        serve(scenario, setting)


@pytest.mark.parametrize("bad", HTTP_ONLY, ids=lambda bad: f"{bad.row} {bad.name}")
def test_what_only_http_can_say_wrong_is_refused_by_status_code_and_field(bad: BadRequest, usual: Run) -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.post(bad.path, content=bad.body, headers=bad.headers)
        check(answer, bad.status, bad.code, bad.param)
        assert place.cluster.arrived == []

    usual(scenario)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: f"{failure.row} {failure.code} {failure.after}")
def test_what_the_cluster_cannot_do_has_its_status_and_says_whether_to_retry(failure: Failure, stream: bool) -> None:
    async def scenario(place: Place) -> None:
        error = ErrorInfo(failure.code, "for people", failure.retry_after_s)
        place.cluster.answer = place.cluster.failing(failure.outcome, error, failure.after)
        answer = await ask(place, COMPLETIONS, prompt="fox", stream=stream)
        row = next((row for row in ROWS if row.code == failure.code), None)
        check(answer, row.http if row else 500, row.code if row else "internal", None)
        hopeless = failure.code in ("slo_unattainable", "deadline_exceeded")
        assert (answer.headers.get("x-should-retry") == "false") == hopeless
        comes_back = failure.retry_after_s is not None or failure.code in ("draining", "unavailable")
        assert ("retry-after" in answer.headers) == comes_back

    serve(scenario)


def test_a_time_that_no_client_waits_for_is_told_with_the_advice_not_to_come_back() -> None:
    assert HttpError(429, "rate_limit_exceeded", "", None, 60.0).headers == {
        "retry-after": "60",
        "retry-after-ms": "60000",
    }
    assert HttpError(429, "rate_limit_exceeded", "", None, 60.5).headers == {
        "retry-after": "61",
        "retry-after-ms": "60500",
        "x-should-retry": "false",
    }


@pytest.mark.parametrize(
    ("code", "retry_after_s", "attempts"),
    [
        ("overloaded", 0.01, 3),
        ("overloaded", 90.0, 1),
        ("slo_unattainable", None, 1),
        ("deadline_exceeded", None, 1),
        ("kv_corrupt", None, 3),
    ],
)
def test_the_official_client_retries_what_can_help_and_nothing_else(
    code: str, retry_after_s: float | None, attempts: int
) -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.failing(Outcome.REFUSED, ErrorInfo(code, "no", retry_after_s))
        async with client_of(place) as client:
            with pytest.raises(openai.APIStatusError) as refused:
                await client.chat.completions.create(model="tiny", messages=says("fox"))
        assert refused.value.code == code
        assert len(place.cluster.arrived) == attempts

    serve(scenario)


@pytest.mark.parametrize(("num_bytes", "declared"), [(9, True), (9, False), (FAR_TOO_LARGE >> 20, True)])
def test_a_body_over_the_limit_is_refused_and_the_server_lives_on(num_bytes: int, declared: bool) -> None:
    async def scenario(place: Place) -> None:
        async def parts() -> object:
            for _ in range(num_bytes):
                yield b"x" * (1 << 20)

        content = b"x" * (num_bytes << 20) if declared else parts()
        try:
            check(await place.client.post(COMPLETIONS, content=content, headers=JSON), 413, "body_too_large", None)
        except (httpx.WriteError, httpx.ReadError):
            assert num_bytes > 16, "the answer to a body of less than twice the limit is heard"
        check(await place.client.post(COMPLETIONS, content=b"{}", headers=JSON), 400, "empty_prompt", "prompt")

    serve(scenario)


def test_our_own_mistake_is_told_by_a_number_only(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(place: Place) -> None:
        def broken(text: str) -> list[int]:
            raise ZeroDivisionError("a secret")

        place.tokenizer.encode = broken  # type: ignore[method-assign]
        answer = await ask(place, COMPLETIONS, prompt="fox")
        check(answer, 500, "internal", None)
        assert "secret" not in answer.text
        assert answer.json()["error"]["message"].split("number ")[1].split()[0] in caplog.text

    serve(scenario)


def test_a_draining_server_refuses_at_the_door_and_closes() -> None:
    async def scenario(place: Place) -> None:
        place.gateway.drain()
        answer = await ask(place, COMPLETIONS, prompt="fox")
        check(answer, 503, "draining", None)
        assert answer.headers["connection"] == "close"

    serve(scenario)


@pytest.mark.slow
def test_two_hundred_hostile_inputs_harm_none_of_fifty_good_streams() -> None:
    hostile = [(bad.path, bad.body, bad.headers) for bad in HTTP_ONLY] + [
        (COMPLETIONS, told.body, {name: value.encode() for name, value in told.headers.items()})
        for told in TOLD
        if told.bad.limits == Limits() and told.bad.max_model_len == MAX_MODEL_LEN and told.bad.access.is_open
    ]
    hostile = (hostile * 2)[:200]

    async def good(place: Place, number: int) -> None:
        prompt = f"{number} the fox {number}"
        chunks = chunks_of((await ask(place, COMPLETIONS, prompt=prompt, max_tokens=60, stream=True)).text)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected(place, prompt, 60)

    async def bad(place: Place, number: int) -> None:
        path, body, headers = hostile[number]
        await asyncio.sleep(0.002 * number)
        assert 400 <= (await place.client.post(path, content=body, headers=headers)).status_code < 500  # type: ignore[arg-type]

    async def scenario(place: Place) -> None:
        assert len(hostile) == 200
        await asyncio.gather(*(good(place, it) for it in range(50)), *(bad(place, it) for it in range(200)))
        assert len(place.cluster.arrived) == 50
        assert (await place.client.get("/ready")).status_code == 200

    serve(scenario)


def test_a_field_of_null_is_a_field_that_is_not_there() -> None:
    async def scenario(place: Place) -> None:
        nulls = dict.fromkeys(("temperature", "n", "stop", "stream", "logprobs", "suffix", "best_of", "user", "slo"))
        assert (await ask(place, COMPLETIONS, prompt="fox", **nulls)).status_code == 200
        assert (await place.client.post(COMPLETIONS, content=completion(n=1.0), headers=JSON)).status_code == 200
        assert json.loads(completion()) == {"prompt": "fox"}

    serve(scenario)
