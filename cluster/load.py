"""Open-loop load on a running gateway: arrivals fixed beforehand, every request on record, whatever becomes of it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import grpc

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import AsyncClient, CallFailed
from core.goodput import Outcome, RequestRecord

_OUTCOMES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Outcome.REFUSED,
    grpc.StatusCode.UNAVAILABLE: Outcome.REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.EXPIRED,
    grpc.StatusCode.CANCELLED: Outcome.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it is sent, in seconds from the start of the run."""

    at_s: float
    request: pb.GenerateRequest


def poisson_times(rate_rps: float, duration_s: float, seed: int) -> list[float]:
    """Moments of a Poisson process, in seconds."""
    chance, at, times = Random(seed), 0.0, list[float]()
    while (at := at + chance.expovariate(rate_rps)) < duration_s:
        times.append(at)
    return times


async def run_load(client: AsyncClient, arrivals: Sequence[Arrival], timeout_s: float) -> list[RequestRecord]:
    """Send every request at its time, without waiting for others; one record each, seen from the client."""
    started = time.monotonic()

    async def one(arrival: Arrival) -> RequestRecord:
        await asyncio.sleep(started + arrival.at_s - time.monotonic())
        return await send(client, arrival.request, timeout_s)

    return await asyncio.gather(*(one(arrival) for arrival in arrivals))


async def send(client: AsyncClient, request: pb.GenerateRequest, timeout_s: float) -> RequestRecord:
    """Send one request and time its tokens."""
    sent, first_s, last_s, num_tokens = time.monotonic(), None, None, 0
    outcome = Outcome.FINISHED
    try:
        async for response in client.generate(request, timeout_s):
            if response.token_ids:
                last_s = time.monotonic() - sent
                first_s = last_s if first_s is None else first_s
                num_tokens += len(response.token_ids)
    except CallFailed as error:
        outcome = _OUTCOMES.get(error.status, Outcome.FAILED)
        if outcome is Outcome.REFUSED and num_tokens:
            outcome = Outcome.FAILED
    return RequestRecord(outcome, first_s, last_s, num_tokens)
