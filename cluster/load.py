"""Open-loop load on a running gateway: arrivals fixed beforehand, every request on record, whatever becomes of it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import AsyncClient, CallFailed
from cluster.workload.gaps import Gaps, class_of
from cluster.workload.items import WorkItem, Workload
from cluster.workload.served import ServedRequest
from core.goodput import Outcome
from core.request import SLO
from core.stats import Timing

_OUTCOMES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Outcome.REFUSED,
    grpc.StatusCode.UNAVAILABLE: Outcome.REFUSED,
    grpc.StatusCode.INVALID_ARGUMENT: Outcome.REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.EXPIRED,
    grpc.StatusCode.CANCELLED: Outcome.CANCELLED,
}

PREPARED_S = 0.05
"""A request is built so long before it is sent: its own making must not make it late."""

LEAD_S = 0.2
"""So long before the first arrival a run begins: its tasks are made then."""

RequestOf = Callable[[int, WorkItem], pb.GenerateRequest]
"""The request that is sent for an item, which has this place in the workload."""


@dataclass(slots=True)
class Answer:
    """One answer as it comes in; times in seconds since the request was sent."""

    outcome: Outcome = Outcome.FINISHED
    error: str = ""
    num_tokens: int = 0
    ttft_s: float | None = None
    last_token_s: float | None = None
    gaps: dict[int, int] = field(default_factory=dict)
    timing: Timing | None = None
    num_cached_tokens: int = 0

    def take(self, response: pb.GenerateResponse, since_s: float) -> None:
        """One response; tokens that come together have no time between them."""
        number = len(response.token_ids)
        if number:
            before = self.last_token_s
            self.ttft_s = since_s if self.ttft_s is None else self.ttft_s
            self.last_token_s = since_s
            self.num_tokens += number
            if before is not None:
                self._count(since_s - before, 1)
            self._count(0.0, number - 1)
        if response.HasField("timing"):
            self.timing = _timing(response)
            self.num_cached_tokens = response.usage.cached_tokens

    def served(self, item: WorkItem, slo: SLO) -> ServedRequest:
        """As the report takes it."""
        gaps: Gaps = self.gaps
        return ServedRequest(
            item,
            slo,
            self.outcome,
            self.num_tokens,
            self.ttft_s,
            self.last_token_s,
            gaps,
            self.timing,
            self.num_cached_tokens,
        )

    def _count(self, gap_s: float, number: int) -> None:
        if number:
            self.gaps[class_of(gap_s)] = self.gaps.get(class_of(gap_s), 0) + number


@dataclass(frozen=True, slots=True)
class LoadSent:
    """What came of a workload. `late_s`: how much later than planned each request was sent, by the client's fault."""

    records: tuple[ServedRequest, ...]
    late_s: tuple[float, ...]
    errors: tuple[str, ...]
    duration_s: float


async def run_load(
    client: AsyncClient, workload: Workload, slo: SLO, request_of: RequestOf, timeout_s: float
) -> LoadSent:
    """Send every request at its time, without waiting for others; one record each, seen from the client."""
    started = time.monotonic() + LEAD_S

    async def one(place: int, item: WorkItem) -> tuple[ServedRequest, float, str]:
        await asyncio.sleep(started + item.at_s - PREPARED_S - time.monotonic())
        request = request_of(place, item)
        await asyncio.sleep(started + item.at_s - time.monotonic())
        late_s = time.monotonic() - started - item.at_s
        answer = await send(client, request, timeout_s)
        return answer.served(item, item.slo or slo), late_s, answer.error

    done = await asyncio.gather(*(one(place, item) for place, item in enumerate(workload.items)))
    records, late, errors = zip(*done, strict=True) if done else ((), (), ())
    return LoadSent(records, late, tuple(filter(None, errors)), time.monotonic() - started)


async def send(client: AsyncClient, request: pb.GenerateRequest, timeout_s: float) -> Answer:
    """Send one request and time its tokens."""
    sent, answer = time.monotonic(), Answer()
    try:
        async for response in client.generate(request, timeout_s):
            answer.take(response, time.monotonic() - sent)
    except CallFailed as error:
        answer.outcome, answer.error = _OUTCOMES.get(error.status, Outcome.FAILED), f"{error.code}: {error.message}"
        if answer.outcome is Outcome.REFUSED and answer.num_tokens:
            answer.outcome = Outcome.FAILED
    return answer


def _timing(response: pb.GenerateResponse) -> Timing:
    told = response.timing
    return Timing(
        told.admit_s,
        told.queue_prefill_s,
        told.prefill_s,
        told.reserve_s,
        told.handoff_s,
        told.queue_decode_s,
        told.decode_s,
        response.usage.cached_tokens,
    )
