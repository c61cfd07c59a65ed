"""What a scraper gets: facts of the gateway, its nodes and its controller, by the table's names and nothing else."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from cluster.api.v1.inference_pb2 import GenerateRequest, SamplingParams
from cluster.batches.batches import BatchCounts
from cluster.batches.records import BatchStatus
from cluster.gateway.keys import AccessSettings, Grant
from cluster.gateway.limits import Limits
from cluster.metrics.config import ObservationConfig
from cluster.metrics.model_work import ModelWork
from cluster.metrics.table import METRICS
from core.costs import StepWork
from core.decisions import Decision, DecisionKind, MixStep
from core.ids import NodeId
from core.mix import mix_of
from core.stats import BlockCounts
from tests.gateway.fake_cluster import STATS, node
from tests.gateway.keyed import CHAT, Keys
from tests.metrics.place import Place, Setting, ended, observe, value

MODEL = ModelWork(1000, 100, 8, 4400, 16)
WORK = StepWork(
    num_prefill_steps=3, num_decode_steps=5, prefill_tokens=40, prefill_pairs=80.0, num_rows=10, row_context=70,
    num_mixed_steps=1,
)  # fmt: skip


def message_of(tenant: str) -> GenerateRequest:
    return GenerateRequest(text="fox", tenant=tenant, sampling=SamplingParams(max_tokens=3))


def with_stats(place: Place, **fields: object) -> None:
    nodes = tuple(replace(each, stats=replace(STATS, **fields)) for each in place.cluster.state.nodes)  # type: ignore[arg-type]
    place.cluster.state = replace(place.cluster.state, nodes=nodes)


def test_requests_are_counted_as_they_end() -> None:
    async def scenario(place: Place) -> None:
        for _ in range(3):
            await place.complete(slo={"ttft_ms": 60_000, "tpot_ms": 60_000})
        await place.complete()
        samples = await place.samples()
        met = {"_class": "standard", "tenant": "", "outcome": "finished"}
        assert value(samples, "penstock_requests_total", **met, slo="met") == 3
        assert value(samples, "penstock_requests_total", **met, slo="none") == 1
        assert value(samples, "penstock_goodput_requests_total", _class="standard", tenant="") == 3
        assert value(samples, "penstock_slo_requests_total") == 3
        assert value(samples, "penstock_generation_tokens_total", tenant="") == 20
        assert value(samples, "penstock_ttft_seconds_count", _class="standard") == 4
        assert value(samples, "penstock_itl_seconds_count", _class="standard") == 16
        assert value(samples, "vllm:request_success_total", finished_reason="length", engine="0") == 4
        assert value(samples, "vllm:generation_tokens_total", engine="0") == 20

    observe(scenario)


def test_what_is_turned_away_at_the_door_is_told_by_its_code() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        full = await place.complete(n=3, slo={"ttft_ms": 100, "tpot_ms": 100})
        assert full.status_code == 503
        assert (await place.complete(max_tokens=100_000)).status_code == 400
        samples = await place.samples()
        assert value(samples, "penstock_refusals_total", code="overloaded") == 1
        assert value(samples, "penstock_refusals_total", code="context_length_exceeded") == 1
        assert value(samples, "penstock_slo_misses_total", stage="refused") == 1

    observe(scenario, Setting(limits=Limits(max_streams=2)))


def test_nodes_are_told_by_the_names_of_their_slots() -> None:
    async def scenario(place: Place) -> None:
        with_stats(place, work=WORK, busy_s=2.5)
        samples = await place.samples()
        assert value(samples, "penstock_nodes", role="prefill") == 1
        assert value(samples, "penstock_node_role", node="d", role="decode") == 1
        assert value(samples, "penstock_node_role", node="d", role="prefill") == 0
        assert value(samples, "penstock_node_busy_seconds_total", node="p") == 2.5
        for kind, steps in (("prefill", 2), ("mixed", 1), ("decode", 5)):
            assert value(samples, "penstock_node_steps_total", node="p", kind=kind) == steps
        blocks = {labels: number for (name, labels), number in samples.items() if name == "penstock_kv_blocks"}
        assert sum(number for labels, number in blocks.items() if ("node", "p") in labels) == STATS.blocks.capacity
        assert value(samples, "penstock_kv_links", node="p", transport="shm") == 1
        assert value(samples, "penstock_kv_events_total", node="p", event="fallback") == 2
        assert value(samples, "penstock_kv_received_bytes_total", node="p", transport="shm") == 1234
        assert value(samples, "penstock_kv_fetches_total", node="p", transport="shm") == 7

    observe(scenario)


def test_a_slot_whose_node_died_is_down_and_the_others_stay() -> None:
    async def scenario(place: Place) -> None:
        state = place.cluster.state
        place.cluster.state = replace(state, nodes=state.nodes[:1])
        place.operator.num_deaths = 1
        samples = await place.samples()
        assert value(samples, "penstock_node_up", node="p") == 1
        assert value(samples, "penstock_node_up", node="d") == 0
        assert value(samples, "penstock_node_deaths_total", node="d") == 1
        assert value(samples, "penstock_serving") == 0
        assert ("penstock_node_busy_seconds_total", frozenset({("node", "d")})) not in samples

    observe(scenario)


def test_sums_by_vllms_names_do_not_fall_when_a_node_dies() -> None:
    async def scenario(place: Place) -> None:
        with_stats(place, num_prompt_tokens=100, num_cached_tokens=40)
        assert value(await place.samples(), "vllm:prefix_cache_hits_total", engine="0") == 80
        fresh = replace(node("d@3", "decode"), stats=replace(STATS, num_prompt_tokens=10, num_cached_tokens=1))
        place.cluster.state = replace(place.cluster.state, nodes=(place.cluster.state.nodes[0], fresh))
        samples = await place.samples()
        assert value(samples, "vllm:prefix_cache_hits_total", engine="0") == 81
        assert value(samples, "vllm:prefix_cache_queries_total", engine="0") == 210

    observe(scenario)


def test_running_waiting_and_cache_usage_mean_what_a_router_expects() -> None:
    async def scenario(place: Place) -> None:
        place.cluster.answer = place.cluster.silence
        calls = [await place.gateway.submit(message_of("")) for _ in range(9)]
        blocks = BlockCounts(100, 40, 20, 10, 10, 5, 5, 10, 0)
        with_stats(place, running_rows=3, blocks=blocks)
        samples = await place.samples()
        assert value(samples, "vllm:num_requests_running", engine="0") == 6
        assert value(samples, "vllm:num_requests_waiting", engine="0") == 3
        assert value(samples, "vllm:kv_cache_usage_perc", engine="0") == pytest.approx(0.4)
        info = value(samples, "vllm:cache_config_info", engine="0", block_size="16", num_gpu_blocks="200")
        assert info == 1
        for call in calls:
            place.gateway.leave(call)

    observe(scenario)


def test_decisions_and_changes_of_mix_are_counted_but_not_advice() -> None:
    async def scenario(place: Place) -> None:
        step = MixStep(NodeId("d@2"), mix_of("decode", 0, 8), mix_of("mixed", 64, 8))
        place.operator.feed.put(Decision(1.0, DecisionKind.RATIO, "more prefill", (step,)))
        place.operator.feed.put(Decision(2.0, DecisionKind.ADVICE, "only said", (step,)))
        place.operator.feed.put(Decision(3.0, DecisionKind.INFEASIBLE, "too much"))
        samples = await place.samples()
        assert value(samples, "penstock_decisions_total", kind="ratio") == 1
        assert value(samples, "penstock_mix_changes_total", from_role="decode", to_role="mixed") == 1
        assert value(samples, "penstock_infeasible") == 1
        assert ("penstock_wanted_nodes", frozenset()) not in samples
        place.operator.feed.put(Decision(4.0, DecisionKind.FEASIBLE, "fine again"))
        place.cluster.state = replace(place.cluster.state, wanted_nodes=3)
        samples = await place.samples()
        assert value(samples, "penstock_infeasible") == 0 and value(samples, "penstock_wanted_nodes") == 3

    observe(scenario)


def test_work_is_estimated_from_the_models_shape_and_told_as_a_share_of_the_peaks() -> None:
    config = ObservationConfig(peak_flops=1e6, peak_bytes_per_s=1e5, node_cost_per_hour=3600.0)

    async def scenario(place: Place) -> None:
        with_stats(place, work=StepWork())
        place.observation.sample(100.0)
        with_stats(place, work=WORK)
        place.observation.sample(104.0)
        flops = 2.0 * (1000 * 50 + 100 * 13) + 8 * (80 + 70)
        moved = 4400 * 8 + 16 * 70
        samples = await place.samples()
        assert value(samples, "penstock_node_model_flops_total", node="p") == flops
        assert value(samples, "penstock_node_model_bytes_total", node="p") == moved
        assert value(samples, "penstock_node_mfu_ratio", node="p") == pytest.approx(flops / 4 / 1e6)
        assert value(samples, "penstock_node_mbu_ratio", node="p") == pytest.approx(moved / 4 / 1e5)
        assert value(samples, "penstock_node_seconds_total") == 8.0
        assert value(samples, "penstock_cost_total") == pytest.approx(8.0)
        assert ("penstock_cost_per_million_tokens", frozenset()) not in samples
        await place.complete()
        assert value(await place.samples(), "penstock_cost_per_million_tokens") == pytest.approx(8.0 / 5 * 1e6)

    observe(scenario, Setting(config, model=MODEL))


def test_what_nobody_said_is_absent_and_never_nought() -> None:
    async def scenario(place: Place) -> None:
        place.observation.sample(1.0)
        place.observation.sample(2.0)
        names = {name for name, _ in await place.samples()}
        for missing in ("mfu", "mbu", "peak", "cost", "model_flops", "model_bytes"):
            assert not [name for name in names if missing in name]

    observe(scenario)


def test_no_name_is_told_that_the_table_has_not_and_vllms_can_be_left_out() -> None:
    async def scenario(place: Place) -> None:
        await place.complete(slo={"ttft_ms": 1, "tpot_ms": 1})
        text = (await place.client.get("/metrics")).text
        families = {family.name for family in text_string_to_metric_families(text)}
        known = set(METRICS) | {name for name in families if name.startswith(("process_", "python_"))}
        assert families <= known
        assert not [name for name in families if name.startswith("vllm:")]

    observe(scenario, Setting(ObservationConfig(vllm_names=False)))


def test_a_scraper_gets_the_form_that_it_asks_for() -> None:
    async def scenario(place: Place) -> None:
        await place.complete()
        plain = await place.client.get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
        asked = {"accept": "application/openmetrics-text; version=1.0.0; q=0.9, text/plain; q=0.1"}
        opened = await place.client.get("/metrics", headers=asked)
        assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert opened.text.endswith("# EOF\n")
        assert {family.name for family in openmetrics_families(opened.text)} >= {"penstock_requests"}

    observe(scenario)


def test_labels_have_no_name_of_a_request_a_process_or_an_unknown_tenant() -> None:
    async def scenario(place: Place) -> None:
        await place.complete()
        call = await place.gateway.submit(message_of("made-up"))
        while (await call.next_chunk()).ended is None:
            pass
        place.gateway.leave(call)
        text = (await place.client.get("/metrics")).text
        assert "made-up" not in text and "@" not in text
        assert not re.search(r'"[0-9a-f]{16,}"', text)

    observe(scenario)


def test_where_keys_are_asked_for_only_an_operator_sees_metrics() -> None:
    keys = Keys(Grant("user", "acme"), Grant("boss", is_admin=True), classes=(CHAT,))

    async def scenario(place: Place) -> None:
        for headers, status in (({}, 401), ({"authorization": keys.header("user")}, 403)):
            assert (await place.client.get("/metrics", headers=headers)).status_code == status
        told = await place.client.get("/metrics", headers={"authorization": keys.header("boss")})
        assert told.status_code == 200
        assert re.search(r'penstock_slo_target_seconds\{class="chat",kind="ttft",model_name="tiny"\} 0.5', told.text)

    observe(scenario, Setting(access=keys.settings))


def test_a_tenant_of_the_access_file_has_its_label() -> None:
    keys = Keys(Grant("user", "acme"), Grant("boss", is_admin=True))

    async def scenario(place: Place) -> None:
        headers = {"authorization": keys.header("user")}
        body = {"model": "tiny", "prompt": "fox", "max_tokens": 4}
        assert (await place.client.post("/v1/completions", json=body, headers=headers)).status_code == 200
        told = await place.client.get("/metrics", headers={"authorization": keys.header("boss")})
        assert 'penstock_generation_tokens_total{model_name="tiny",tenant="acme"} 4.0' in told.text

    observe(scenario, Setting(access=AccessSettings(keys.settings.keys)))


def test_samples_are_bounded_and_numbered_without_a_gap() -> None:
    async def scenario(place: Place) -> None:
        for second in range(700):
            place.observation.sample(float(second))
        numbers = [sample.number for sample in place.observation.history.samples]
        assert numbers == list(range(101, 701))

    observe(scenario)


def test_cost_is_told_by_tenant_and_adds_up() -> None:
    async def scenario(place: Place) -> None:
        place.observation.sample(100.0)
        place.observation.note_end(ended())
        place.observation.sample(460.0)
        samples = await place.samples()
        assert value(samples, "penstock_cost_total") == pytest.approx(0.2)
        assert value(samples, "penstock_tenant_cost_total", tenant="") == pytest.approx(0.2)

    observe(scenario, Setting(ObservationConfig(node_cost_per_hour=1.0)))


def test_batches_are_told_by_where_they_are_and_absent_where_none_are_kept() -> None:
    counts = BatchCounts(tuple((status, int(status is BatchStatus.EXPIRED)) for status in BatchStatus), 7, 2, 30, 4)

    async def scenario(place: Place) -> None:
        assert not [name for name, _ in await place.samples() if name.startswith("penstock_batch")]
        place.observation.batches = SimpleNamespace(counts=counts)  # type: ignore[assignment]
        samples = await place.samples()
        assert value(samples, "penstock_batches", status="expired") == 1
        assert len([name for name, _ in samples if name == "penstock_batches"]) == 8
        assert value(samples, "penstock_batch_requests", state="queued") == 7
        assert value(samples, "penstock_batch_requests", state="running") == 2
        assert value(samples, "penstock_batch_requests_ended_total", outcome="answered") == 30
        assert value(samples, "penstock_batch_requests_ended_total", outcome="failed") == 4

    observe(scenario)
