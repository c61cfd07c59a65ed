"""Flags, estimates, routes and gaps between tokens: the small parts that metrics are made of."""

import argparse

import pytest

from cluster import observe_flags
from cluster.cli import _parser
from cluster.flags import service_config
from cluster.gateway.client_stream import ClientStream
from cluster.gateway.ledger import GAP_BOUNDS_S
from cluster.gateway.stops import AnswerText
from cluster.gateway.streams import Delivered, Ended
from cluster.metrics import routes_seen
from cluster.metrics.config import RequestLogFormat
from cluster.metrics.history import History, NodeWork, Sample
from cluster.metrics.model_work import model_work
from cluster.metrics.routes_seen import NOWHERE, RequestNodes, RoutesSeen
from cluster.metrics.tally import RequestTally
from cluster.metrics.tenant_costs import TenantCosts, tokens_done
from cluster.service import EMBEDDED_MODEL
from cluster.simulated.hardware import ModelShape
from core.commands import Command, Tell
from core.costs import StepWork
from core.errors import ConfigError
from core.events import FinishReason, SchedulerEvent, Submitted, Tick
from core.goodput import Outcome
from core.ids import GatewayId, NodeId, RequestId, attempt_id
from core.request import Prompt, Request, SamplingParams
from engine.hf_config import read_model_config
from tests.gateway.test_client_stream import ByteDetokenizer
from tests.metrics.place import ended

REQUEST = Request(RequestId("r"), Prompt(1, ()), b"", SamplingParams(max_tokens=9))


def parsed(*flags: str) -> argparse.Namespace:
    return _parser().parse_args(["serve", *flags])


def test_flags_become_the_service_s_own_words() -> None:
    args = parsed("--request-log", "json", "--peak-tflops", "2", "--peak-memory-gbs", "3", "--metrics-port", "0")
    config = observe_flags.with_observe(service_config(args), args).observe
    assert config.request_log is RequestLogFormat.JSON
    assert (config.peak_flops, config.peak_bytes_per_s) == (2e12, 3e9)
    assert (config.metrics_port, config.metrics_host, config.vllm_names) == (0, "127.0.0.1", True)


def test_every_wrong_flag_is_told_at_once() -> None:
    args = parsed("--peak-tflops", "0", "--node-cost-per-hour", "nan", "--metrics-port", "70000")
    args.otlp_traces_endpoint = "collector:4317"
    with pytest.raises(ConfigError) as raised:
        observe_flags.with_observe(service_config(args), args)
    assert [problem.split(" ")[0] for problem in raised.value.problems] == [
        "--node-cost-per-hour",
        "--peak-tflops",
        "--otlp-traces-endpoint",
        "--metrics-port",
    ]


def test_traces_without_their_extra_are_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe_flags, "OTEL_PACKAGES", ("opentelemetry.sdk", "there_is.no_such_package"))
    args = parsed("--otlp-traces-endpoint", "http://127.0.0.1:4317")
    with pytest.raises(ConfigError, match=r"penstock\[otel\]"):
        observe_flags.with_observe(service_config(args), args)


def test_the_estimate_is_what_the_simulators_shape_of_the_same_model_gives() -> None:
    config = read_model_config(EMBEDDED_MODEL)
    model = model_work(EMBEDDED_MODEL, "bfloat16")
    assert model is not None
    shape = ModelShape(
        "embedded", model.num_parameters, config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads,
        config.head_dim, config.vocab_size,
    )  # fmt: skip
    assert model.weight_bytes == shape.weight_bytes(2.0)
    assert model.kv_bytes_per_token == shape.kv(16).bytes_per_block / 16
    one_row = StepWork(num_decode_steps=1, num_rows=1, row_context=10)
    matrices = 2.0 * (model.num_parameters + shape.num_head_parameters)
    attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * 10
    assert model.flops(one_row) == matrices + attention
    assert model.bytes_read(one_row) == model.weight_bytes + model.kv_bytes_per_token * 10


def test_a_model_that_cannot_be_estimated_has_no_estimate() -> None:
    assert model_work(EMBEDDED_MODEL, "float32", "int8") is None


class Said:
    """A scheduler that says what it was given."""

    def __init__(self, *commands: Command) -> None:
        self.commands = commands

    def handle(self, event: SchedulerEvent, now: float) -> tuple[Command, ...]:
        return self.commands


def submitted(number: int, to: str, decode: str, request: RequestId = REQUEST.id) -> Tell:
    attempt = attempt_id(request, number)
    return Tell(NodeId(to), Submitted(attempt, REQUEST, b"", GatewayId("g"), NodeId(decode), 0.0))


def test_where_a_request_ran_is_told_once_by_the_names_of_slots() -> None:
    commands = (submitted(1, "p-0@1", "d-0@2"), submitted(2, "p-1@1", "d-0@2"))
    routes = RoutesSeen(Said(*commands))
    assert routes.handle(Tick(), 0.0) == commands
    assert routes.seen(REQUEST.id) == RequestNodes("p-1", "d-0")
    assert routes.take(REQUEST.id) == RequestNodes("p-1", "d-0")
    assert routes.take(REQUEST.id) == NOWHERE


def test_where_a_request_ran_is_seen_for_a_while_after_it_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_seen, "MAX_TAKEN", 2)
    names = [RequestId(name) for name in "abc"]
    routes = RoutesSeen(Said(*(submitted(1, f"p-{name}@1", "d@1", name) for name in names)))
    routes.handle(Tick(), 0.0)
    for name in names:
        routes.take(name)
    assert [routes.seen(name).prefill for name in names] == ["", "p-b", "p-c"]


def test_gaps_between_tokens_are_counted_as_the_client_is_given_them() -> None:
    stream = ClientStream(REQUEST, 0.0, 0.0, AnswerText(ByteDetokenizer(lambda token: bytes([97 + token])), ()))
    for index, count, at in ((0, 1, 1.0), (1, 1, 1.004), (2, 3, 1.044), (5, 1, 200.0)):
        stream.put(Delivered(REQUEST.id, index, tuple(range(count))), at)
    ended = Ended(REQUEST.id, Outcome.FINISHED, FinishReason.LENGTH, None, None, 6, 1)
    ledger = stream.end(ended, 200.0)
    found = {(*GAP_BOUNDS_S, None)[place]: number for place, number in enumerate(ledger.gaps) if number}
    assert found == {0.001: 2, 0.005: 1, 0.05: 1, None: 1}
    assert sum(ledger.gaps) == ledger.num_tokens - 1


def sample(number: int, at: float, work: dict[NodeId, NodeWork]) -> Sample:
    return Sample(number, at, 0, 0, 0, 0, 0, 0, 0, 0, (), work)


def test_rates_are_of_the_last_ten_seconds_and_of_one_incarnation() -> None:
    history, node = History(), NodeId("d@1")
    for second in range(21):
        history.samples.append(sample(second, float(second), {node: NodeWork(max(0, second - 15) * 10.0, second)}))
    assert history.rates(node) == NodeWork(5.0, 1.0)
    assert history.rates(NodeId("d@2")) is None


def test_the_nodes_time_is_shared_by_the_tokens_done_and_idle_time_falls_on_who_comes_next() -> None:
    costs = TenantCosts()
    costs.share(10.0, {})
    assert (dict(costs.seconds), costs.unshared_s) == ({}, 10.0)
    costs.share(2.0, {"acme": 30, "": 10})
    assert (dict(costs.seconds), costs.unshared_s) == ({"acme": 9.0, "": 3.0}, 0.0)
    costs.share(5.0, {"acme": 30, "": 10})
    costs.share(1.0, {"acme": 30, "": 20})
    assert (dict(costs.seconds), costs.unshared_s) == ({"acme": 9.0, "": 9.0}, 0.0)


def test_tokens_that_were_found_cached_are_not_done_again() -> None:
    tally = RequestTally(lambda: frozenset({"acme"}))
    tally.add(ended(tenant="acme"))
    assert tokens_done(tally) == {"acme": 7 - 3 + 11}
