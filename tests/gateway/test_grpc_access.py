"""Keys over gRPC: nothing is reachable without one but the health service, and each opens what it was given."""

import asyncio
import logging

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo as ErrorInfoDetail
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import AsyncClient, CallFailed, Credentials
from cluster.gateway.keys import Grant, Quota
from core.errors import ErrorInfo
from core.goodput import Outcome
from core.request import SLO
from tests.gateway.calls import ask
from tests.gateway.fake_cluster import Place, serve, until
from tests.gateway.keyed import CHAT, Keys, Stub, channel_to

METHODS = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["InferenceService"].methods)


async def code_of(call: object) -> tuple[str, str]:
    """Status and our own code of a call that fails."""
    reading = _read_all(call) if isinstance(call, grpc.aio.Call) else call
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await reading  # type: ignore[misc]
    info = ErrorInfoDetail()
    assert rpc_status.from_call(failed.value).details[0].Unpack(info)
    return failed.value.code().name, info.reason


async def _read_all(call: grpc.aio.Call) -> None:
    async for _ in call:  # type: ignore[attr-defined]
        pass


@pytest.mark.parametrize("method", [*METHODS, "Nope"])
@pytest.mark.parametrize("header", [(), (("authorization", "Bearer psk-guess"),), (("authorization", "x"),) * 2])
def test_no_method_answers_without_a_key_not_even_one_that_is_not_there(
    method: str, header: tuple[tuple[str, str], ...]
) -> None:
    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            call = channel.unary_unary(f"/penstock.v1.InferenceService/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(b"\xff", metadata=header)
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert place.cluster.arrived == []

    serve(scenario, access=Keys(Grant("a")).settings)


def test_probes_need_no_key_and_reflection_does() -> None:
    keys = Keys(Grant("a"))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "penstock.v1.InferenceService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            names = reflection_pb2.ServerReflectionRequest(list_services="")
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await reflection().read()  # writes nothing: a write that meets the refusal ends as INTERNAL
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
            listed = await reflection(iter([names]), metadata=keys.metadata("a")).read()
            assert len(listed.list_services_response.service) == 3

    serve(scenario, access=keys.settings)


def test_our_own_client_shows_its_key() -> None:
    keys = Keys(Grant("a", "acme"))

    async def scenario(place: Place) -> None:
        key = keys.metadata("a")[0][1].removeprefix("Bearer ")
        async with AsyncClient(place.server.address, Credentials(key)) as client:
            answers = [response async for response in client.generate(ask(max_tokens=3))]
            assert answers[-1].finish_reason == "length"
            assert place.cluster.arrived[0].tenant == "acme"
        with pytest.raises(CallFailed) as denied:
            await anext(place.client.generate(ask()))
        assert (denied.value.code, denied.value.status) == ("invalid_api_key", grpc.StatusCode.UNAUTHENTICATED)
        assert key not in repr(Credentials(key))

    serve(scenario, access=keys.settings)


def test_a_key_opens_its_models_and_its_tenant_only() -> None:
    keys = Keys(Grant("right", "acme", models=("tiny",)), Grant("wrong", "acme", models=("other",)))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            stub, wrong, right = Stub(channel), keys.metadata("wrong"), keys.metadata("right")
            forbidden = ("PERMISSION_DENIED", "model_forbidden")
            for call in (
                stub.generate(ask(), wrong),
                stub.ask("GetModel", pb.GetModelRequest(), pb.GetModelResponse, wrong),
                stub.ask("Tokenize", pb.TokenizeRequest(text="fox"), pb.TokenizeResponse, wrong),
                stub.ask("Detokenize", pb.DetokenizeRequest(token_ids=[5]), pb.DetokenizeResponse, wrong),
            ):
                assert await code_of(call) == forbidden
            for metadata, count in ((wrong, 0), (right, 1)):
                models = await stub.ask("ListModels", pb.ListModelsRequest(), pb.ListModelsResponse, metadata)
                assert len(models.models) == count  # type: ignore[attr-defined]
            rival = pb.GenerateRequest(text="fox", tenant="rival")
            assert await code_of(stub.generate(rival, right)) == ("PERMISSION_DENIED", "tenant_forbidden")
            assert place.cluster.arrived == []

    serve(scenario, access=keys.settings)


def test_the_cluster_is_shown_to_operators_only_once_there_are_keys() -> None:
    keys = Keys(Grant("user"), Grant("operator", is_admin=True))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            stub, request = Stub(channel), pb.GetClusterRequest()
            hidden = stub.ask("GetCluster", request, pb.GetClusterResponse, keys.metadata("user"))
            assert await code_of(hidden) == ("PERMISSION_DENIED", "admin_forbidden")
            shown = await stub.ask("GetCluster", request, pb.GetClusterResponse, keys.metadata("operator"))
            assert len(shown.nodes) == 2  # type: ignore[attr-defined]

    serve(scenario, access=keys.settings)


def test_a_key_that_has_used_its_minute_is_told_when_to_come_back_and_others_are_not_touched() -> None:
    keys = Keys(Grant("a", quota=Quota(requests_per_minute=2)), Grant("b"))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            stub = Stub(channel)
            for _ in range(2):
                async for _ in stub.generate(ask(max_tokens=1), keys.metadata("a")):
                    pass
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.generate(ask(max_tokens=1), keys.metadata("a")).read()
            assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            retry = RetryInfo()
            assert any(detail.Unpack(retry) for detail in rpc_status.from_call(failed.value).details)
            assert 0 < retry.retry_delay.ToMilliseconds() <= 30_000
            async for _ in stub.generate(ask(max_tokens=1), keys.metadata("b")):
                pass
            assert len(place.cluster.arrived) == 3

    serve(scenario, access=keys.settings)


def test_tokens_that_an_answer_did_not_use_are_there_for_the_next() -> None:
    keys = Keys(Grant("a", quota=Quota(tokens_per_minute=450)))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            stub, metadata = Stub(channel), keys.metadata("a")
            place.cluster.answer = place.cluster.silence
            leaving = stub.generate(ask("fox", 400), metadata)
            await until(lambda: bool(place.cluster.arrived))
            busy = await code_of(stub.generate(ask("fox", 400), metadata))
            assert busy == ("RESOURCE_EXHAUSTED", "rate_limit_exceeded")
            leaving.cancel()
            await until(lambda: list(place.cluster.told_ends.values()) == [Outcome.CANCELLED])
            place.cluster.answer = place.cluster.echo
            async for _ in stub.generate(ask("fox", 400), metadata):
                pass

    serve(scenario, access=keys.settings)


def test_requests_at_once_are_counted_until_each_call_is_over_however_it_ends() -> None:
    keys = Keys(Grant("a", quota=Quota(max_concurrent=2)))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            stub, metadata = Stub(channel), keys.metadata("a")
            place.cluster.answer = place.cluster.silence
            both = stub.generate(ask("fox", 9, n=2), metadata)
            await until(lambda: len(place.cluster.arrived) == 2)
            assert await code_of(stub.generate(ask(), metadata)) == ("RESOURCE_EXHAUSTED", "rate_limit_exceeded")
            both.cancel()
            await until(lambda: len(place.cluster.told_ends) == 2)
            assert (await code_of(stub.generate(ask(max_tokens=0), metadata)))[1] == "invalid_max_tokens"
            place.cluster.answer = place.cluster.failing(Outcome.FAILED, ErrorInfo("worker_lost", "gone"))
            for _ in range(3):
                assert (await code_of(stub.generate(ask(), metadata)))[1] == "worker_lost"
            place.cluster.answer = place.cluster.echo
            for _ in range(3):
                async for _ in stub.generate(ask(max_tokens=2), metadata):
                    pass

    serve(scenario, access=keys.settings)


def test_a_priority_above_the_keys_ceiling_is_clamped_and_said() -> None:
    keys = Keys(Grant("a", max_priority=1))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            for asked, notes in ((9, ["priority_clamped"]), (1, []), (-3, [])):
                request = pb.GenerateRequest(text="fox", priority=asked, sampling=pb.SamplingParams(max_tokens=1))
                call = Stub(channel).generate(request, keys.metadata("a"))
                initial = await call.initial_metadata()
                assert [value for key, value in initial if key == "penstock-notes"] == notes
                async for _ in call:
                    pass
            assert [request.priority for request in place.cluster.arrived] == [1, 1, -3]

    serve(scenario, access=keys.settings)


def test_equal_prompts_share_kv_inside_a_tenant_and_never_across_tenants_or_salts() -> None:
    keys = Keys(Grant("a1", "acme"), Grant("a2", "acme"), Grant("as", "acme", cache_salt="s"), Grant("r", "rival"))

    async def scenario(place: Place) -> None:
        async def block_keys(name: str, salt: str = "") -> tuple[bytes, ...]:
            request = pb.GenerateRequest(text="fox " * 40, cache_salt=salt, sampling=pb.SamplingParams(max_tokens=1))
            async for _ in Stub(channel).generate(request, keys.metadata(name)):
                pass
            prompt = place.cluster.arrived[-1].prompt
            return (*prompt.block_keys, prompt.tail_key)

        async with channel_to(place) as channel:
            shared = await block_keys("a1")
            assert len(shared) > 1
            assert await block_keys("a2") == shared
            others = [shared, await block_keys("as"), await block_keys("r"), await block_keys("a1", "s1")]
            others += [await block_keys("a1", "s2"), await block_keys("r", "s1")]
            assert len({key for other in others for key in other}) == sum(map(len, others))
            assert await block_keys("a2", "s1") == others[3]

    serve(scenario, access=keys.settings)


def test_abort_ends_the_callers_own_calls_of_that_name_and_nobody_elses() -> None:
    keys = Keys(Grant("a"), Grant("b"))

    async def scenario(place: Place) -> None:
        async with channel_to(place) as channel:
            stub = Stub(channel)
            place.cluster.answer = place.cluster.silence
            request = ask(max_tokens=9)
            request.request_id = "mine"
            calls = [stub.generate(request, keys.metadata("a")) for _ in range(2)]
            await until(lambda: len(place.cluster.arrived) == 2)
            calls.append(stub.generate(request, keys.metadata("b")))
            await until(lambda: len(place.cluster.arrived) == 3)
            ended = [asyncio.create_task(code_of(call)) for call in calls[:2]]

            async def abort(name: str, *ids: str) -> int:
                answer = await stub.ask(
                    "Abort", pb.AbortRequest(request_ids=ids), pb.AbortResponse, keys.metadata(name)
                )
                return int(answer.num_aborted)  # type: ignore[attr-defined]

            minted = place.cluster.arrived[2].id
            assert await abort("a", minted, "nobody") == 0
            assert await abort("a", "mine") == 2
            assert await asyncio.gather(*ended) == [("CANCELLED", "client_closed")] * 2
            assert await abort("a", "mine") == 0
            assert await abort("b", minted) == 1
            assert (await code_of(calls[2]))[0] == "CANCELLED"
            assert set(place.cluster.told_ends.values()) == {Outcome.CANCELLED}

    serve(scenario, access=keys.settings)


def test_the_last_response_says_the_targets_what_came_and_whether_they_were_met() -> None:
    keys = Keys(Grant("a"), Grant("strict", slo=SLO(1e-9, 1e-9)), classes=(CHAT,))

    async def scenario(place: Place) -> None:
        async def last(name: str, **fields: object) -> pb.GenerateResponse:
            request = pb.GenerateRequest(text="fox", sampling=pb.SamplingParams(max_tokens=5), **fields)  # type: ignore[arg-type]
            responses = [response async for response in Stub(channel).generate(request, keys.metadata(name))]
            assert not any(response.HasField("slo") for response in responses[:-1])
            return responses[-1]

        async with channel_to(place) as channel:
            assert not (await last("a")).HasField("slo")
            met = (await last("a", slo=pb.SLO(ttft_s=60, tpot_s=60))).slo
            assert (met.met, met.target.ttft_s, met.slo_class) == (True, 60, "standard")
            assert 0 < met.ttft_s < 60
            assert met.HasField("tpot_s")
            missed = (await last("strict")).slo
            assert (missed.met, missed.target.tpot_s) == (False, 1e-9)
            chat = (await last("a", slo_class="chat")).slo
            assert (chat.target.ttft_s, chat.slo_class) == (0.5, "chat")
            assert [ledger.met for ledger in place.gateway.ledgers] == [None, True, False, chat.met]

    serve(scenario, access=keys.settings)


def test_no_key_ever_stands_in_the_log_or_in_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys(Grant("a"))
    key = keys.metadata("a")[0][1].removeprefix("Bearer ")

    async def scenario(place: Place) -> None:
        def broken(text: str) -> list[int]:
            raise ZeroDivisionError

        place.tokenizer.encode = broken  # type: ignore[method-assign]
        async with channel_to(place) as channel:
            for metadata in (keys.metadata("a"), (("authorization", f"Bearer {key}x"),)):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await Stub(channel).generate(ask(), metadata).read()
                assert key not in str(failed.value)

    with caplog.at_level(logging.DEBUG):
        serve(scenario, access=keys.settings)
    assert key not in caplog.text
