"""A gateway that loses its cluster: what is open fails, nothing is taken, until a cluster knows it again."""

import asyncio

import pytest

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import CallFailed
from core.goodput import Outcome
from core.ids import GatewayId, RequestId
from core.request import Request
from tests.gateway.calls import answer, ask
from tests.gateway.fake_cluster import Place, serve, until


def test_open_calls_fail_once_with_the_reason_and_all_their_choices_end() -> None:
    async def scenario(place: Place) -> None:
        async def begin(request: Request) -> None:
            place.cluster.emit(request, 0, 3)

        async def read() -> None:
            async for response in place.client.generate(ask(n=2)):
                responses.append(response)

        responses: list[pb.GenerateResponse] = []
        place.cluster.answer = begin
        reading = asyncio.ensure_future(read())
        await until(lambda: sum(len(response.token_ids) for response in responses) == 6)
        place.gateway.lose_cluster("nothing heard for 5 s")
        with pytest.raises(CallFailed) as found:
            await reading
        assert found.value.code == "worker_lost"
        assert "this gateway has lost its cluster: nothing heard for 5 s" in found.value.message
        outcomes = sorted(ledger.outcome for ledger in place.gateway.ledgers)
        assert outcomes == sorted((Outcome.FAILED, Outcome.CANCELLED)), "one failed, and took the other with it"
        assert place.gateway.streams.is_idle()

    serve(scenario)


def test_without_a_cluster_requests_are_refused_at_once_and_with_the_next_one_they_are_served() -> None:
    async def scenario(place: Place) -> None:
        place.gateway.lose_cluster("its process ended")
        with pytest.raises(CallFailed, match="its process ended") as found:
            await answer(place, ask())
        assert found.value.code == "unavailable"
        assert found.value.retry_after_s is not None
        assert place.cluster.arrived == []
        place.gateway.find_cluster(GatewayId("gateway-0123abcd"))
        assert (await answer(place, ask()))[-1].finish_reason == "length"

    serve(scenario)


def test_the_names_of_requests_begin_with_what_sets_their_gateway_apart() -> None:
    async def scenario(place: Place) -> None:
        for word in ("0123abcd", "4567cdef"):
            place.gateway.find_cluster(GatewayId(f"gateway-{word}"))
            await answer(place, ask(n=2))
        names: list[RequestId] = [request.id for request in place.cluster.arrived]
        assert [name[:8] for name in names] == ["0123abcd"] * 2 + ["4567cdef"] * 2
        assert len(set(names)) == 4
        assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)

    serve(scenario)
