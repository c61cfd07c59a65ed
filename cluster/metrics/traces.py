"""OpenTelemetry spans of each request, made from its ledger when it has ended: gateway → prefill → transfer → decode.

Needs the extra `otel`; imported only where an endpoint is configured. No span for a token, and no text of anybody.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.metrics.ended import EndedRequest
from core.goodput import Outcome
from core.stats import Timing

NANO = 1e9
EXPORT_WAIT_MS = 2000
Attributes = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class _Part:
    """A child span, in seconds since the request came."""

    name: str
    begin_s: float
    end_s: float
    attributes: Attributes


class Tracing:
    """Owns: the provider, and with it the spans that wait to be exported."""

    def __init__(self, model: str, processor: SpanProcessor) -> None:
        self._model = model
        resource = Resource.create({"service.name": "penstock", "service.version": version("penstock")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer: Tracer = self._provider.get_tracer("penstock")

    def write(self, ended: EndedRequest) -> None:
        """The spans of one request; its trace is its caller's, where that named one and wants it sampled."""
        ledger = ended.ledger
        carrier = {"traceparent": ledger.facts.traceparent} if ledger.facts.traceparent else {}
        parent = TraceContextTextMapPropagator().extract(carrier)
        began = ended.received_wall_s
        span = self._tracer.start_span(
            "penstock.request",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_attributes(ended, self._model),
            start_time=_nano(began),
        )
        if ledger.outcome is not Outcome.FINISHED:
            span.set_status(Status(StatusCode.ERROR, ledger.code))
        for part in _parts(ended):
            self._write_part(part, span, began)
        span.end(_nano(began + ledger.wall_s))

    def close(self) -> None:
        """Send what waits, for at most a moment, and stop."""
        self._provider.force_flush(EXPORT_WAIT_MS)
        self._provider.shutdown()

    def _write_part(self, part: _Part, parent: Span, began: float) -> None:
        context = set_span_in_context(parent)
        start = _nano(began + part.begin_s)
        child = self._tracer.start_span(part.name, context=context, attributes=part.attributes, start_time=start)
        child.end(_nano(began + part.end_s))


def otlp_tracing(model: str, endpoint: str) -> Tracing:
    """Spans go to an OTLP collector over gRPC; a `http://` endpoint is spoken to in clear."""
    return Tracing(model, BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


def _attributes(ended: EndedRequest, model: str) -> Attributes:
    ledger = ended.ledger
    found: Attributes = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "penstock",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.usage.input_tokens": ledger.num_prompt_tokens,
        "gen_ai.usage.output_tokens": ledger.num_tokens,
        "penstock.request.id": ledger.id,
        "penstock.outcome": ledger.outcome.value,
        "penstock.attempts": ledger.num_attempts,
    }
    optional = {
        "gen_ai.request.id": ledger.facts.client_id or None,
        "error.type": ledger.code or None,
        "penstock.slo.class": ledger.slo_class or None,
        "penstock.slo.met": ledger.met,
        "penstock.slo.lost_at": ended.lost_at or None,
        "penstock.cached_tokens": ledger.num_cached_tokens,
        "penstock.ttft_s": ledger.ttft_s,
        "penstock.tpot_s": ledger.record.tpot_s,
    }
    return found | {name: value for name, value in optional.items() if value is not None}


def _parts(ended: EndedRequest) -> Iterator[_Part]:
    """The ledger's parts one after the other; of requests with several attempts they are those of the last one.

    What no part explains lies before them where attempts were lost, so the parts are laid back from the last token.
    """
    ledger, timing = ended.ledger, ended.ledger.timing
    if not timing.total_s:
        return
    last_s = ledger.wall_s if ledger.last_token_s is None else ledger.last_token_s
    at = max(0.0, last_s - timing.total_s) if ledger.num_attempts > 1 else 0.0
    for name, seconds, attributes in _stages(timing, ended):
        if seconds > 0:
            yield _Part(name, at, at + seconds, attributes)
        at += seconds


def _stages(timing: Timing, ended: EndedRequest) -> tuple[tuple[str, float, Attributes], ...]:
    prefill_s = timing.queue_prefill_s + timing.prefill_s
    transfer_s = timing.reserve_s + timing.handoff_s
    decode_s = timing.queue_decode_s + timing.decode_s
    at_prefill: Attributes = {"penstock.node": ended.nodes.prefill, "penstock.queue_s": timing.queue_prefill_s}
    moved: Attributes = {
        "penstock.from": ended.nodes.prefill,
        "penstock.to": ended.nodes.decode,
        "penstock.reserve_s": timing.reserve_s,
        "penstock.handoff_s": timing.handoff_s,
    }
    at_decode: Attributes = {"penstock.node": ended.nodes.decode, "penstock.queue_s": timing.queue_decode_s}
    return (
        ("gateway", timing.admit_s, {}),
        ("prefill", prefill_s, at_prefill),
        ("transfer", transfer_s, moved),
        ("decode", decode_s, at_decode),
    )


def _nano(wall_s: float) -> int:
    return int(wall_s * NANO)
