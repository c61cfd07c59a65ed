"""Bad input: every row of the table gets exactly its status, code and field, and harms nobody."""

import asyncio
from dataclasses import dataclass

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.error_details_pb2 import ErrorInfo as ErrorInfoDetail
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import AsyncClient, Credentials
from cluster.gateway.errors_wire import DOMAIN, PUSHBACK_KEY, ROWS, Variant, echoed, wire_row, wire_status
from cluster.gateway.limits import Limits
from core.errors import ErrorInfo
from tests.gateway.bad_inputs import ELSEWHERE, FAILURES, IA, INPUTS, KEYS, BadInput, Failure, text
from tests.gateway.fake_cluster import MAX_MODEL_LEN, Place, serve

GENERATE = "/penstock.v1.InferenceService/Generate"


@dataclass(frozen=True)
class Answer:
    """A failed call, taken apart."""

    status: str
    message: str
    details: Status
    metadata: dict[str, str | bytes]
    num_tokens: int

    def detail(self, message: object) -> bool:
        return any(detail.Unpack(message) for detail in self.details.details)


Metadata = tuple[tuple[str, str], ...]


async def refused(place: Place | str, data: bytes, method: str = GENERATE, metadata: Metadata = ()) -> Answer:
    """A call that fails; to a place, or to an address."""
    responses: list[pb.GenerateResponse] = []
    address = place if isinstance(place, str) else place.server.address
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await _read(channel, (method, data, metadata), responses)
    return Answer(
        failed.value.code().name,
        failed.value.details() or "",
        rpc_status.from_call(failed.value),
        dict(failed.value.trailing_metadata()),
        sum(len(response.token_ids) for response in responses),
    )


async def _read(channel: grpc.aio.Channel, ask: tuple[str, bytes, Metadata], into: list[pb.GenerateResponse]) -> None:
    method, data, metadata = ask
    generate: grpc.aio.UnaryStreamMultiCallable[bytes, pb.GenerateResponse] = channel.unary_stream(
        method, response_deserializer=pb.GenerateResponse.FromString
    )
    async for response in generate(data, metadata=metadata):
        into.append(response)


def check(answer: Answer, status: str, code: str, field: str) -> None:
    info, bad = ErrorInfoDetail(), BadRequest()
    assert answer.status == status, answer.message
    assert answer.detail(info)
    assert (info.reason, info.domain) == (code, DOMAIN)
    assert answer.detail(bad) == bool(field)
    assert [violation.field for violation in bad.field_violations] == ([field] if field else [])
    assert not field or answer.message.startswith(f"{field}: ")
    assert len(answer.message) < 250


def test_the_tables_are_whole() -> None:
    assert len(ROWS) == 46
    assert len({(row.code, row.variant) for row in ROWS}) == len(ROWS)
    assert (len(INPUTS), len(FAILURES)) == (111, 17)
    assert len({bad.name for bad in INPUTS}) == len(INPUTS)
    covered = {bad.code for bad in INPUTS} | {failure.code for failure in FAILURES} | ELSEWHERE
    assert {row.code for row in ROWS} == covered - {"a code that nobody knows"}
    numbers = {bad.row for bad in INPUTS} | {failure.row for failure in FAILURES}
    listed = {*range(14, 29), 3, *range(9, 12), 31, 33, 34, *range(36, 46), 49, 52}
    assert numbers - {0} == listed


@pytest.mark.parametrize("bad", INPUTS, ids=lambda bad: f"{bad.row} {bad.name}")
def test_bad_input_is_refused_by_status_code_and_field(bad: BadInput) -> None:
    async def scenario(place: Place) -> None:
        answer = await refused(place, bad.data, metadata=bad.metadata)
        check(answer, bad.status, bad.code, bad.field)
        assert bad.says in answer.message
        assert place.cluster.arrived == []

    serve(scenario, bad.limits, bad.max_model_len, bad.access)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: f"{failure.row} {failure.code} {failure.after}")
def test_what_the_cluster_cannot_do_is_told_with_its_own_status(failure: Failure) -> None:
    async def scenario(place: Place) -> None:
        error = ErrorInfo(failure.code, "for people", failure.retry_after_s)
        place.cluster.answer = place.cluster.failing(failure.outcome, error, failure.after)
        answer = await refused(place, text())
        known = {row.code for row in ROWS}
        check(answer, failure.status, failure.code if failure.code in known else "internal", "")
        assert answer.num_tokens == failure.after
        retry = RetryInfo()
        assert answer.detail(retry) == (failure.retry_after_s is not None)
        if failure.retry_after_s is not None:
            assert retry.retry_delay.ToMilliseconds() == failure.retry_after_s * 1000
            assert answer.metadata[PUSHBACK_KEY] == str(int(failure.retry_after_s * 1000))

    serve(scenario)


def test_clamped_fields_are_accepted() -> None:
    async def scenario(place: Place) -> None:
        params = pb.SamplingParams(max_tokens=1, n=1, top_k=-1)
        request = pb.GenerateRequest(text="a\0b", sampling=params, priority=-(2**31), deadline_ms=2**62)
        async for _ in place.client.generate(request):
            pass
        (arrived,) = place.cluster.arrived
        assert (arrived.priority, arrived.sampling.top_k) == (-10, 0)

    serve(scenario)


@pytest.mark.parametrize("method", ["/penstock.v1.InferenceService/Nope", "/no.Such/Service" + "x" * 100])
def test_an_unknown_method_is_refused_by_name(method: str) -> None:
    async def scenario(place: Place) -> None:
        answer = await refused(place, b"", method)
        check(answer, "UNIMPLEMENTED", "not_found", "")
        assert method[:60] in answer.message

    serve(scenario)


def test_a_message_far_too_large_is_refused_by_the_transport_and_the_server_lives_on() -> None:
    async def scenario(place: Place) -> None:
        async with grpc.aio.insecure_channel(place.server.address) as channel:
            generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(GENERATE)
            assert await generate(b"x" * (17 * 1024 * 1024)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        check(await refused(place, b""), IA, "empty_prompt", "text")

    serve(scenario)


def test_metadata_far_too_large_is_refused_by_the_transport_and_the_server_lives_on() -> None:
    async def scenario(place: Place) -> None:
        large = tuple((f"x-{number}", "y" * 4000) for number in range(8))
        async with grpc.aio.insecure_channel(place.server.address) as channel:
            generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(GENERATE)
            assert await generate(text(), metadata=large).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        check(await refused(place, b""), IA, "empty_prompt", "text")

    serve(scenario)


def test_our_own_mistake_is_told_by_a_number_only(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(place: Place) -> None:
        def broken(text: str) -> list[int]:
            raise ZeroDivisionError("a secret")

        place.tokenizer.encode = broken  # type: ignore[method-assign]
        answer = await refused(place, text())
        check(answer, "INTERNAL", "internal", "")
        assert "secret" not in answer.message
        assert answer.message.split("number ")[1].split()[0] in caplog.text

    serve(scenario)


def test_refused_inputs_harm_nobody_beside_them() -> None:
    async def scenario(place: Place) -> None:
        good = place.client.generate(pb.GenerateRequest(text="fox", sampling=pb.SamplingParams(max_tokens=200)))
        responses = [await anext(good)]
        for bad in INPUTS:
            if bad.limits == Limits() and bad.max_model_len == MAX_MODEL_LEN and bad.access.is_open:
                await refused(place, bad.data)
        responses += [response async for response in good]
        assert sum(len(response.token_ids) for response in responses) == 200

    serve(scenario)


def test_two_hundred_hostile_inputs_harm_none_of_fifty_good_streams() -> None:
    async def good(place: Place, number: int) -> int:
        request = pb.GenerateRequest(text=f"{number} fox", sampling=pb.SamplingParams(max_tokens=100))
        key = KEYS.header("good").removeprefix("Bearer ")
        async with AsyncClient(place.server.address, Credentials(key)) as client:
            return sum([len(response.token_ids) async for response in client.generate(request)])

    async def scenario(place: Place) -> None:
        streams = [asyncio.create_task(good(place, number)) for number in range(50)]
        usual = [bad for bad in INPUTS if bad.limits == Limits() and bad.max_model_len == MAX_MODEL_LEN]
        hostile = [usual[number % len(usual)] for number in range(200)]
        keyed = (("authorization", KEYS.header("good")),)
        sent = [(bad.data, keyed if bad.access.is_open else bad.metadata) for bad in hostile]
        at_once = asyncio.Semaphore(40)  # channels of one process share a connection, which takes 100 streams

        async def hostile_call(data: bytes, metadata: Metadata) -> Answer:
            async with at_once:
                return await refused(place, data, metadata=metadata)

        answers = await asyncio.gather(*(hostile_call(*call) for call in sent))
        assert await asyncio.gather(*streams) == [100] * 50
        assert {answer.status for answer in answers} <= {row.grpc.name for row in ROWS} - {"INTERNAL", "UNAVAILABLE"}

    serve(scenario, access=KEYS.settings)


def test_a_draining_server_refuses_at_the_door() -> None:
    async def scenario(place: Place) -> None:
        place.gateway.drain()
        check(await refused(place, text()), "UNAVAILABLE", "draining", "")

    serve(scenario)


def test_variants_fall_back_to_the_usual_row_and_unknown_codes_to_internal() -> None:
    assert wire_row("overloaded", Variant.AFTER_TOKENS) is wire_row("overloaded")
    assert wire_row("nobody knows", Variant.MALFORMED).code == "internal"
    assert len(wire_status(ErrorInfo("internal", "x" * 5000)).message) == 1024


@pytest.mark.parametrize(("value", "shown"), [("a" * 99, 64), ("é" * 99, 32), ("\n", 2), ("😀" * 17, 16)])
def test_at_most_64_bytes_of_input_are_said_back(value: str, shown: int) -> None:
    assert len(echoed(value)) == shown + 2
