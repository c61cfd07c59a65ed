"""Malformed messages to every method: each gets an answer that blames the caller, and the service stays ready."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.api.v1 import inference_pb2 as pb
from tests.gateway.bad_inputs import INPUTS
from tests.gateway.fake_cluster import Place, serve
from tests.gateway.keyed import channel_to

METHODS = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["InferenceService"].methods)
CALLERS_FAULT = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"}
SEEDS = (
    pb.GenerateRequest(
        request_id="r",
        model="tiny",
        text="the fox für 漢字",
        sampling=pb.SamplingParams(max_tokens=4, temperature=1, stop=["x"], logit_bias={5: 1.0}, logprobs=2, n=2),
        slo=pb.SLO(ttft_s=1, tpot_s=1),
        tenant="t",
        slo_class="standard",
        cache_salt="s",
    ).SerializeToString(),
    pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[1, 2, 299]), sampling=pb.SamplingParams(max_tokens=2)
    ).SerializeToString(),
    pb.TokenizeRequest(text="fox", chat=True).SerializeToString(),
    pb.DetokenizeRequest(token_ids=[1, 2, 3]).SerializeToString(),
    pb.AbortRequest(request_ids=["a", "b"]).SerializeToString(),
    *(bad.data for bad in INPUTS if len(bad.data) < 4000),
)


def mutants(rng: random.Random, count: int) -> Iterator[bytes]:
    """Messages with bits flipped, bytes cut, doubled or made up, and two of them run together."""
    for _ in range(count):
        data = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data) + 1)
            match rng.randrange(5):
                case 0 if place < len(data):
                    data[place] ^= 1 << rng.randrange(8)
                case 1:
                    del data[place : place + rng.randint(1, 8)]
                case 2:
                    data[place:place] = rng.randbytes(rng.randint(1, 8))
                case 3:
                    data[place:place] = data[: rng.randint(0, len(data))]
                case 4:
                    data += rng.choice(SEEDS)
        yield bytes(data)


async def status_of(channel: grpc.aio.Channel, method: str, data: bytes) -> str:
    make = channel.unary_stream if method == "Generate" else channel.unary_unary
    call = make(f"/penstock.v1.InferenceService/{method}")(data, timeout=30)
    if method == "Generate":
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError:
            pass
    return (await call.code()).name


async def fuzz(place: Place, seed: int, count: int) -> Counter[str]:
    rng, seen = random.Random(seed), Counter[str]()
    async with channel_to(place) as channel:
        ready = health_pb2_grpc.HealthStub(channel)
        for number, data in enumerate(mutants(rng, count)):
            method = rng.choice(METHODS)
            status = await status_of(channel, method, data)
            assert status in CALLERS_FAULT, f"seed {seed}, number {number}: {method} {data!r} gave {status}"
            seen[status] += 1
            if number % 50 == 0:
                answer = await ready.Check(health_pb2.HealthCheckRequest(service="penstock.v1.InferenceService"))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
    return seen


@pytest.mark.parametrize("seed", range(2))
def test_malformed_messages_are_the_callers_fault_and_leave_the_service_ready(seed: int) -> None:
    async def scenario(place: Place) -> None:
        good = asyncio.create_task(_stream(place))
        seen = await fuzz(place, seed, 500)
        assert seen["INVALID_ARGUMENT"] > 50
        assert seen["OK"] > 50
        assert await good == 400

    serve(scenario)


@pytest.mark.slow
def test_twenty_thousand_malformed_messages() -> None:
    async def scenario(place: Place) -> None:
        assert sum((await fuzz(place, 99, 20_000)).values()) == 20_000

    serve(scenario, seconds=110)


async def _stream(place: Place) -> int:
    request = pb.GenerateRequest(text="fox", sampling=pb.SamplingParams(max_tokens=400))
    return sum([len(response.token_ids) async for response in place.client.generate(request)])
