"""One trace of each request: the caller's, where it named one, with the parts of the ledger one after the other."""

import asyncio
from dataclasses import replace

import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cluster.api.v1 import inference_pb2 as pb
from cluster.metrics.ended import EndedRequest
from cluster.metrics.traces import Tracing
from core.goodput import Outcome
from core.stats import Timing
from tests.gateway import fake_cluster
from tests.metrics.place import NODES, TIMING, Place, ended, observe

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
WALL_S = 1_700_000_000.0


def spans_of(*requests: EndedRequest) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracing = Tracing("tiny", SimpleSpanProcessor(exporter))
    for each in requests:
        tracing.write(each)
    tracing.close()
    return list(exporter.get_finished_spans())


def request(**fields: object) -> EndedRequest:
    return EndedRequest(1, ended(**fields), NODES, WALL_S)


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None and span.end_time is not None
    began = WALL_S - 0.5
    return round(span.start_time / 1e9 - began, 4), round(span.end_time / 1e9 - began, 4)


def test_the_parts_follow_each_other_under_the_request() -> None:
    *parts, whole = spans_of(request())
    assert (whole.name, whole.kind, seconds(whole)) == ("penstock.request", SpanKind.SERVER, (0.0, 0.5))
    assert [(part.name, *seconds(part)) for part in parts] == [
        ("gateway", 0.0, 0.01),
        ("prefill", 0.01, 0.06),
        ("transfer", 0.06, 0.07),
        ("decode", 0.07, 0.47),
    ]
    assert all(part.parent is not None and part.parent.span_id == whole.context.span_id for part in parts)
    assert [(part.attributes or {}).get("penstock.node") for part in parts] == [None, "p", None, "d"]
    assert dict(parts[2].attributes or {}) == {
        "penstock.from": "p",
        "penstock.to": "d",
        "penstock.reserve_s": 0.0,
        "penstock.handoff_s": 0.01,
    }


def test_the_request_says_model_usage_and_outcome_in_the_conventions_words() -> None:
    said = dict(spans_of(request())[-1].attributes or {})
    assert said["gen_ai.request.model"] == "tiny" and said["gen_ai.usage.input_tokens"] == 7
    assert said["gen_ai.usage.output_tokens"] == 11 and said["gen_ai.request.id"] == "mine"
    assert said["penstock.outcome"] == "finished" and said["penstock.slo.met"] is True
    assert "error.type" not in said


def test_a_failed_request_is_an_error_with_its_code() -> None:
    (whole,) = spans_of(request(outcome=Outcome.FAILED, code="worker_lost", timing=Timing(), ttft_s=None))
    assert whole.status.status_code is StatusCode.ERROR
    assert (whole.attributes or {})["error.type"] == "worker_lost"


def test_parts_of_a_second_attempt_end_with_the_last_token() -> None:
    *parts, _ = spans_of(request(num_attempts=2, wall_s=0.5, last_token_s=0.49, timing=replace(TIMING, decode_s=0.2)))
    assert seconds(parts[-1]) == (0.29, 0.49)


def test_the_callers_trace_goes_on_and_its_wish_not_to_be_sampled_is_kept() -> None:
    facts = ended().facts
    joined = spans_of(request(facts=replace(facts, traceparent=SAMPLED)))[-1]
    assert format(joined.context.trace_id, "032x") == TRACE
    assert joined.parent is not None and format(joined.parent.span_id, "016x") == PARENT
    assert spans_of(request(facts=replace(facts, traceparent=UNSAMPLED))) == []


def trace_ids(exporter: InMemorySpanExporter) -> list[str]:
    roots = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    exporter.clear()
    return [format(span.context.trace_id, "032x") for span in roots]


def test_a_traceparent_comes_in_by_http_header_and_nonsense_begins_a_trace_of_its_own() -> None:
    async def scenario(place: Place) -> None:
        exporter = InMemorySpanExporter()
        place.observation.trace_to(Tracing("tiny", SimpleSpanProcessor(exporter)))
        body = {"model": "tiny", "prompt": "fox", "max_tokens": 3}
        await place.client.post("/v1/completions", json=body, headers={"traceparent": SAMPLED})
        assert trace_ids(exporter) == [TRACE]
        for wrong in ("00-" + "0" * 32 + f"-{PARENT}-01", "nonsense", "ff" + SAMPLED[2:], SAMPLED.upper()):
            answer = await place.client.post("/v1/completions", json=body, headers={"traceparent": wrong})
            assert answer.status_code == 200
            assert trace_ids(exporter) not in ([TRACE], [])
        await place.client.post("/v1/completions", json=body)
        assert trace_ids(exporter) != [TRACE]

    observe(scenario)


def test_a_traceparent_comes_in_by_grpc_metadata() -> None:
    seen: list[str] = []

    async def scenario(place: fake_cluster.Place) -> None:
        import grpc

        place.gateway.on_ended = lambda ledger: seen.append(ledger.facts.traceparent)
        async with grpc.aio.insecure_channel(place.server.address) as channel:
            call = channel.unary_stream(
                "/penstock.v1.InferenceService/Generate",
                request_serializer=pb.GenerateRequest.SerializeToString,
                response_deserializer=pb.GenerateResponse.FromString,
            )
            asked = pb.GenerateRequest(text="fox", sampling=pb.SamplingParams(max_tokens=3))
            async for _ in call(asked, metadata=(("traceparent", SAMPLED),)):
                pass
            async for _ in call(asked):
                pass
        await asyncio.sleep(0)

    fake_cluster.serve(scenario)
    assert seen == [SAMPLED, ""]
