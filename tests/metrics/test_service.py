"""Metrics, log lines and traces of a real service: two nodes, the embedded model, a scraper and a collector."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import openai
import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from cluster.gateway.keys import digest_of, mint_key
from tests.metrics.place import Samples, samples_of
from tests.service.running import Running, running

pytestmark = pytest.mark.slow

MODEL = "penstock-embedded"
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    def Export(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += [(span.name, span.trace_id.hex()) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    kept = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def fetch(url: str) -> Samples:
    with urllib.request.urlopen(url) as answer:
        return samples_of(answer.read().decode())


def total(samples: Samples, name: str) -> float:
    return sum(value for (each, _), value in samples.items() if each == name)


def ask(service: Running, key: str, **headers: str) -> None:
    assert service.service.http is not None
    with openai.OpenAI(base_url=f"{service.service.http.url}/v1", api_key=key) as client:
        client.completions.create(
            model=MODEL,
            prompt="The code word is canary-7391.",
            max_tokens=8,
            extra_headers={**headers},
            extra_body={"ignore_eos": True},
        )


def test_a_keyed_service_is_scraped_without_a_key_logged_without_text_and_traced_across_its_nodes(
    tmp_path: Path, collector: tuple[Collector, str], capfd: pytest.CaptureFixture[str]
) -> None:
    kept, endpoint = collector
    key, file = mint_key(), tmp_path / "access.yaml"
    file.write_text(f"keys:\n  - id: user\n    sha256: {digest_of(key).hex()}\n    tenant: acme\n")
    flags = ("--access-file", str(file), "--metrics-port", "0", "--request-log", "json")
    with running("--prefill", "1", "--decode", "1", *flags, "--otlp-traces-endpoint", endpoint) as service:
        assert service.service.metrics is not None and service.service.http is not None
        ask(service, key, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
        service.until_idle(2)
        samples = fetch(service.service.metrics.url)
        nodes = service.nodes().values()
        assert total(samples, "penstock_requests_total") == 1
        assert total(samples, "penstock_kv_received_bytes_total") == sum(node.num_bytes for node in nodes) > 0
        assert total(samples, "penstock_node_computed_tokens_total") > 8
        assert ("penstock_generation_tokens_total", frozenset({("tenant", "acme")})) in samples
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(f"{service.service.http.url}/metrics")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(service.service.metrics.url.replace("/metrics", "/v1/models"))
    assert sorted(name for name, _ in kept.spans) == ["decode", "gateway", "penstock.request", "prefill", "transfer"]
    assert {trace for _, trace in kept.spans} == {TRACE}
    error_output = capfd.readouterr().err
    (line,) = [line for line in error_output.splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert (told["prefill_node"], told["decode_node"], told["tenant"]) == ("prefill-0", "decode-0", "acme")
    assert "canary" not in error_output
