"""Real gRPC clients against a real server: streams, cancels, deadlines, health, reflection."""

import asyncio
import contextlib
import random

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cluster.api.v1 import inference_pb2 as pb
from cluster.api.v1 import inference_pb2_grpc
from cluster.gateway.client import CallFailed, Client
from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.grpc_server import GrpcServer
from cluster.gateway.limits import Limits
from cluster.gateway.listening import Endpoint
from core.errors import ConfigError, ErrorInfo
from core.events import RequestEnded, Tick
from core.goodput import Outcome
from core.request import SLO, unpack_tokens
from tests.gateway.calls import TEXT, answer
from tests.gateway.fake_cluster import TIMING, Place, node, serve, until


def ask(text: str = TEXT, max_tokens: int = 40, **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, sampling=pb.SamplingParams(max_tokens=max_tokens), **fields)  # type: ignore[arg-type]


def token_ids(responses: list[pb.GenerateResponse]) -> list[int]:
    place, ids = 0, list[int]()
    for response in responses:
        assert not response.token_ids or response.index == place
        ids += response.token_ids
        place += len(response.token_ids)
    return ids


def test_an_answer_is_gapless_and_ends_with_reason_usage_and_timing() -> None:
    async def scenario(place: Place) -> None:
        responses = await answer(place, ask(request_id="mine", slo=pb.SLO(ttft_s=1, tpot_s=0.1), priority=99))
        prompt, last = place.tokenizer.encode(TEXT), responses[-1]
        assert token_ids(responses) == [prompt[i % len(prompt)] for i in range(40)]
        assert "".join(response.text for response in responses) == place.tokenizer.decode(token_ids(responses))
        assert {response.request_id for response in responses} == {"mine"}
        assert [response.finish_reason for response in responses[:-1]] == [""] * (len(responses) - 1)
        usage = last.usage
        assert (last.finish_reason, usage.prompt_tokens, usage.completion_tokens) == ("length", len(prompt), 40)
        assert usage.cached_tokens == TIMING.num_cached_tokens
        timing = last.timing
        assert timing.decode_s == TIMING.decode_s
        assert timing.admit_s > TIMING.admit_s
        parts = timing.admit_s + TIMING.total_s - TIMING.admit_s
        assert timing.wall_s == pytest.approx(parts + timing.unaccounted_s)
        (request,) = place.cluster.arrived
        assert (request.slo, request.priority, request.sampling.max_tokens) == (SLO(1, 0.1), 10, 40)
        assert len(request.prompt.block_keys) == len(prompt) // 16
        assert place.cluster.told_ends == {request.id: Outcome.FINISHED}

    serve(scenario)


def test_prompts_may_be_token_ids_or_a_chat_message() -> None:
    async def scenario(place: Place) -> None:
        await answer(place, pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6, 7])))
        await answer(place, ask("fox", 3, chat=True))
        ids, chat = place.cluster.arrived
        assert unpack_tokens(ids.token_ids) == (5, 6, 7)
        assert ids.sampling.max_tokens == 256
        assert unpack_tokens(chat.token_ids) == tuple(place.tokenizer.encode_chat("fox"))
        assert ids.sampling.seed != chat.sampling.seed

    serve(scenario)


def test_thirty_two_streams_at_once_do_not_mix() -> None:
    async def scenario(place: Place) -> None:
        texts = [f"{number} the fox {number}" for number in range(32)]
        answers = await asyncio.gather(*(answer(place, ask(text, 60)) for text in texts))
        for text, responses in zip(texts, answers, strict=True):
            prompt = place.tokenizer.encode(text)
            assert token_ids(responses) == [prompt[i % len(prompt)] for i in range(60)]
        assert len(place.gateway.records) == 32

    serve(scenario)


def test_tokens_that_come_together_go_out_in_one_response() -> None:
    async def scenario(place: Place) -> None:
        async def burst(request: object) -> None:
            place.cluster.emit(place.cluster.arrived[0], 0, 40)

        place.cluster.answer = burst
        assert len(await answer(place, ask())) == 1

    serve(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_clients_that_leave_at_random_moments_are_cancelled_and_harm_nobody(seed: int) -> None:
    rng = random.Random(seed)

    async def leave_after(place: Place, num_tokens: int) -> None:
        call = place.client.generate(ask(max_tokens=400))
        while num_tokens > 0:
            num_tokens -= len((await anext(call)).token_ids)
        await call.aclose()

    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.echo_short_of(400)
        leavers = [leave_after(place, rng.randrange(1, 400)) for _ in range(16)]
        stayers = [answer(place, ask(max_tokens=100)) for _ in range(16)]
        results = await asyncio.gather(*leavers, *stayers)
        assert all(len(token_ids(result)) == 100 for result in results if result is not None)
        await until(lambda: len(place.cluster.told_ends) == 32)
        outcomes = list(place.cluster.told_ends.values())
        assert (outcomes.count(Outcome.CANCELLED), outcomes.count(Outcome.FINISHED)) == (16, 16)

    serve(scenario)


def test_a_client_that_leaves_before_any_token_is_cancelled() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        task = asyncio.create_task(answer(place, ask()))
        await until(lambda: bool(place.cluster.arrived))
        task.cancel()
        await until(lambda: list(place.cluster.told_ends.values()) == [Outcome.CANCELLED])
        assert place.gateway.ledgers[0].code == "client_closed"

    serve(scenario)


def test_a_lost_node_is_not_seen_by_the_client() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.losing(after=7)
        responses = await answer(place, ask())
        prompt = place.tokenizer.encode(TEXT)
        assert token_ids(responses) == [prompt[i % len(prompt)] for i in range(40)]
        assert responses[-1].timing.num_attempts == 2

    serve(scenario)


def test_the_calls_own_deadline_counts_as_expired() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        with pytest.raises(CallFailed) as failed:
            await anext(place.client.generate(ask(), timeout_s=0.3))
        assert failed.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: list(place.cluster.told_ends.values()) == [Outcome.EXPIRED])
        assert place.cluster.arrived[0].deadline_s <= 0.3

    serve(scenario)


def test_the_shorter_of_both_deadlines_holds_and_long_ones_are_clamped() -> None:
    async def scenario(place: Place) -> None:
        await anext(place.client.generate(ask(deadline_ms=5_000), timeout_s=50))
        await anext(place.client.generate(ask(deadline_ms=50_000), timeout_s=5))
        await anext(place.client.generate(ask(deadline_ms=10**12)))
        limits = [request.deadline_s for request in place.cluster.arrived]
        assert max(limits[:2]) < 6
        assert 500 < limits[2] <= 600

    serve(scenario)


def test_a_request_expires_even_where_the_scheduler_is_silent() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        task = asyncio.create_task(answer(place, ask(deadline_ms=100)))
        await until(lambda: bool(place.cluster.arrived))
        opened_at = asyncio.get_running_loop().time()
        place.gateway.handle(Tick(), opened_at + 10)
        with pytest.raises(CallFailed, match="are over") as failed:
            await task
        assert (failed.value.status, failed.value.code) == (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded")

    serve(scenario)


def test_a_client_that_leaves_too_much_unread_is_cancelled() -> None:
    async def scenario(place: Place) -> None:
        async def flood(request: object) -> None:
            place.cluster.emit(place.cluster.arrived[0], 0, 200)

        place.cluster.answer = flood
        with pytest.raises(CallFailed) as failed:
            await answer(place, ask(max_tokens=400))
        assert (failed.value.status, failed.value.code) == (grpc.StatusCode.CANCELLED, "slow_reader")

    serve(scenario, Limits(max_pending_bytes=1000))


def test_a_client_that_reads_nothing_is_cancelled() -> None:
    async def scenario(place: Place) -> None:
        async def flood(request: object) -> None:
            for step in range(400):
                await asyncio.sleep(0.001)
                place.cluster.emit(place.cluster.arrived[0], step * 500, 500)
                place.cluster.give(Tick())

        place.cluster.answer = flood
        small_window = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(place.server.address, options=small_window) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Generate(ask(max_tokens=300_000))
            await until(lambda: bool(place.gateway.ledgers))
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            assert await call.code() is grpc.StatusCode.CANCELLED
        assert place.gateway.ledgers[0].code == "slow_reader"

    serve(scenario, Limits(max_stall_s=0.2), max_model_len=1_000_000)


def test_stopping_refuses_new_requests_and_lets_open_ones_end() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        task = asyncio.create_task(answer(place, ask(max_tokens=3)))
        await until(lambda: bool(place.cluster.arrived))
        stopping = asyncio.create_task(place.server.stop(grace_s=20))
        await until(lambda: place.gateway.is_draining)
        place.cluster.emit(place.cluster.arrived[0], 0, 3)
        assert len(token_ids(await task)) == 3
        await stopping
        await place.server.stop()

    serve(scenario)


def test_health_tells_whether_both_phases_are_served() -> None:
    async def scenario(place: Place) -> None:
        async with grpc.aio.insecure_channel(place.server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="penstock.v1.InferenceService"))
            statuses = aiter(watch)
            assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
            place.cluster.state = ClusterState((node("p@1", "prefill"),))
            assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            lives = await stub.Check(health_pb2.HealthCheckRequest())
            assert lives.status == health_pb2.HealthCheckResponse.SERVING, "the process lives without its nodes"
            place.cluster.state = ClusterState((node("p@1", "mixed"),))
            assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()

    serve(scenario)


def test_get_cluster_shows_nodes_ledgers_and_counters() -> None:
    async def scenario(place: Place) -> None:
        await answer(place, ask())
        place.cluster.answer = place.cluster.failing(Outcome.REFUSED, ErrorInfo("overloaded", "full"))
        with pytest.raises(CallFailed):
            await answer(place, ask())
        cluster = await place.client.get_cluster()
        first = cluster.nodes[0]
        assert (first.id, first.name, first.incarnation, first.pid, first.role) == ("p@1", "p", "1", 4711, "prefill")
        assert (first.blocks.capacity, first.blocks.in_use, first.kv_bytes_received, first.num_fetches) == (
            36,
            7,
            1234,
            7,
        )
        assert [(it.peer, it.transport, it.why) for it in first.kv_links] == [("d@1", "shm", "shm (as asked)")]
        assert [(it.name, it.value) for it in first.kv_counters] == [("fallback", 2)]
        assert (first.mix.epoch, first.running_rows, first.queued_tokens, first.leases) == (3, 4, 3, 2)
        assert [ledger.outcome for ledger in cluster.requests] == ["finished", "refused"]
        assert cluster.requests[0].usage.completion_tokens == 40
        assert cluster.requests[0].ttft_s <= cluster.requests[0].last_token_s <= cluster.requests[0].timing.wall_s
        assert not cluster.requests[1].HasField("ttft_s")
        assert cluster.requests[1].code == "overloaded"
        assert {counter.name: counter.value for counter in cluster.counters}["retries"] == 5
        assert (cluster.model.name, cluster.serving) == ("tiny", True)

    serve(scenario)


def test_a_client_that_knows_only_reflection_can_generate() -> None:
    def ask_by_reflection(address: str) -> list[dict[str, object]]:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = set(database.get_services())
            assert {"penstock.v1.InferenceService", "grpc.health.v1.Health"} <= services
            pool = descriptor_pool.DescriptorPool(database)
            method = pool.FindServiceByName("penstock.v1.InferenceService").FindMethodByName("Generate")
            request = message_factory.GetMessageClass(method.input_type)
            response = message_factory.GetMessageClass(method.output_type)
            call = channel.unary_stream(
                f"/{method.containing_service.full_name}/{method.name}", request.SerializeToString, response.FromString
            )
            message = json_format.ParseDict({"text": "fox", "sampling": {"maxTokens": 9}}, request())
            return [json_format.MessageToDict(answer) for answer in call(message)]

    async def scenario(place: Place) -> None:
        answers = await asyncio.to_thread(ask_by_reflection, place.server.address)
        assert answers[-1]["finishReason"] == "length"
        assert sum(len(list(answer["tokenIds"])) for answer in answers) == 9  # type: ignore[call-overload,misc]

    serve(scenario)


def test_the_plain_client_reads_leaves_and_is_told_errors() -> None:
    def use(address: str) -> None:
        with Client(address) as client:
            assert client.get_cluster().serving
            assert list(client.generate(ask()))[-1].finish_reason == "length"
            leaving = client.generate(ask(max_tokens=400))
            next(leaving)
            leaving.close()
            with pytest.raises(CallFailed, match="max_tokens") as failed:
                list(client.generate(ask(max_tokens=0)))
            assert (failed.value.code, failed.value.field) == ("invalid_max_tokens", "sampling.max_tokens")

    async def scenario(place: Place) -> None:
        await asyncio.to_thread(use, place.server.address)

    serve(scenario)


def test_a_long_text_is_made_into_tokens_aside() -> None:
    async def scenario(place: Place) -> None:
        responses = await answer(place, ask("fox " * 5000, 2))
        assert responses[-1].usage.prompt_tokens == len(place.tokenizer.encode("fox " * 5000))

    serve(scenario, max_model_len=100_000)


def test_a_port_in_use_is_the_operators_error() -> None:
    async def scenario(place: Place) -> None:
        port = int(place.server.address.rpartition(":")[2])
        with pytest.raises(ConfigError, match="cannot listen"):
            await GrpcServer(place.gateway, lambda: place.cluster.state, Endpoint(port=port)).start()

    serve(scenario)


def test_equal_client_names_are_two_requests() -> None:
    async def scenario(place: Place) -> None:
        answers = await asyncio.gather(answer(place, ask(request_id="same")), answer(place, ask(request_id="same")))
        assert [len(token_ids(responses)) for responses in answers] == [40, 40]
        assert len({request.id for request in place.cluster.arrived}) == 2

    serve(scenario)


def test_an_end_after_tokens_comes_after_them() -> None:
    async def scenario(place: Place) -> None:
        async def fail_late(request: object) -> None:
            (arrived,) = place.cluster.arrived
            place.cluster.emit(arrived, 0, 3)
            await asyncio.sleep(0)
            place.cluster.emit(arrived, 3, 2)
            place.cluster.give(RequestEnded(arrived.id, Outcome.FAILED, ErrorInfo("worker_lost", "gone")))

        place.cluster.answer = fail_late
        call, seen = place.client.generate(ask()), list[int]()
        while len(seen) < 5:
            seen += (await anext(call)).token_ids
        with pytest.raises(CallFailed) as failed:
            await anext(call)
        assert (failed.value.status, failed.value.code) == (grpc.StatusCode.ABORTED, "worker_lost")

    serve(scenario)
