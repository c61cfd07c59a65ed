"""What the page is told: the numbers of /metrics, only what it has not seen, nothing without an operator's key."""

import re
from dataclasses import replace

import httpx
import pytest

from cluster.gateway.dashboard.routes import FILES, OPEN_PATHS
from cluster.gateway.keys import Grant
from cluster.metrics.config import ObservationConfig
from cluster.metrics.history import Sample
from core.decisions import Decision, DecisionKind, MixStep
from core.ids import NodeId
from core.mix import mix_of
from tests.gateway.keyed import Keys
from tests.metrics.place import Place, Setting, observe

SLO = {"ttft_ms": 60_000, "tpot_ms": 60_000}


async def state(place: Place, **seen: int) -> dict[str, object]:
    answer = await place.client.get("/dashboard/state.json", params=seen)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert isinstance(told, dict)
    return told


def numbers(told: dict[str, object], what: str) -> list[int]:
    found = told[what]
    assert isinstance(found, list)
    return [each["number"] for each in found]


def test_every_total_is_the_sum_of_its_samples_in_the_metrics() -> None:
    async def scenario(place: Place) -> None:
        for _ in range(3):
            await place.complete(slo=SLO)
        await place.complete(max_tokens=100_000)
        place.observation.sample(1.0)
        told, samples = await state(place), await place.samples()
        sums: dict[str, float] = {}
        for (name, _labels), number in samples.items():
            sums[name] = sums.get(name, 0.0) + number
        totals = told["totals"]
        assert isinstance(totals, dict) and len(totals) > 40
        assert totals == {name: sums[name] for name in totals}

    observe(scenario)


def test_a_page_is_told_only_what_it_has_not_seen() -> None:
    async def scenario(place: Place) -> None:
        for second in range(3):
            place.observation.sample(float(second))
            await place.complete()
        place.operator.feed.put(Decision(1.0, DecisionKind.CAPACITY, "one more"))
        first = await state(place)
        assert [numbers(first, what) for what in ("samples", "requests", "decisions")] == [[1, 2, 3], [1, 2, 3], [1]]
        await place.complete()
        later = await state(place, sample=2, request=3, decision=1)
        assert [numbers(later, what) for what in ("samples", "requests", "decisions")] == [[3], [4], []]

    observe(scenario)


def test_one_sample_of_each_minute_is_kept_for_a_day_and_told_to_who_asks_for_it() -> None:
    async def scenario(place: Place) -> None:
        for second in range(700):
            place.observation.sample(float(second))
        told = await state(place)
        assert numbers(told, "samples") == list(range(101, 701)) and numbers(told, "minutes") == []
        assert numbers(await state(place, minute=0), "minutes") == [60 * minute + 1 for minute in range(12)]
        assert numbers(await state(place, minute=601), "minutes") == [661]

    observe(scenario)


def test_a_day_of_minutes_is_all_that_is_kept() -> None:
    async def scenario(place: Place) -> None:
        for second in range(25 * 3600):
            place.observation.history.add(Sample(second + 1, float(second), 0, 0, 0, 0, 0, 0, 0, 0, (), {}))
        minutes = numbers(await state(place, minute=0), "minutes")
        assert len(minutes) == 24 * 60 and minutes[-1] == 25 * 3600 - 59

    observe(scenario)


def test_a_sample_counts_all_that_came_and_tells_of_blocks_and_leases() -> None:
    async def scenario(place: Place) -> None:
        await place.complete()
        assert (await place.complete(max_tokens=100_000)).status_code == 400
        place.observation.sample(1.0)
        (sample,) = (await state(place))["samples"]  # type: ignore[misc]
        assert (sample["came"], sample["ended"], sample["open"]) == (2, 1, 0)
        metrics = await place.samples()
        assert sample["leases"] == sum(each for (name, _), each in metrics.items() if name == "penstock_node_leases")
        blocks = [(labels, each) for (name, labels), each in metrics.items() if name == "penstock_kv_blocks"]
        for block_state, number in sample["blocks"].items():
            assert number == sum(each for labels, each in blocks if ("state", block_state) in labels)
        assert sum(sample["blocks"].values()) == 72

    observe(scenario)


@pytest.mark.parametrize("name", ["request", "minute"])
@pytest.mark.parametrize("text", ["-1", "1.5", "many", "9" * 40, "٣"])
def test_a_number_that_is_none_is_refused_by_its_name(text: str, name: str) -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.get("/dashboard/state.json", params={name: text})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name

    observe(scenario)


def test_a_request_is_told_with_its_stages_its_targets_and_its_nodes() -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.post(
            "/v1/completions",
            json={"model": "tiny", "prompt": "fox", "max_tokens": 3, "slo": SLO},
            headers={"x-request-id": "<b>mine</b>"},
        )
        assert answer.status_code == 200
        (told,) = (await state(place))["requests"]  # type: ignore[misc]
        assert told["client_id"] == "<b>mine</b>" and told["outcome"] == "finished" and told["met"] is True
        assert (told["slo_ttft_s"], told["slo_tpot_s"]) == (60.0, 60.0)
        assert (told["prefill_node"], told["decode_node"], told["tokens"]) == ("p", "d", 3)
        assert len(told["stages_s"]) == 7 and told["stages_s"][6] == 0.007

    observe(scenario)


def test_a_slot_without_a_node_is_told_as_down_with_what_its_start_is_doing() -> None:
    async def scenario(place: Place) -> None:
        before = (await state(place))["nodes"]
        place.cluster.state = replace(place.cluster.state, nodes=place.cluster.state.nodes[:1])
        place.operator.num_deaths = 1
        after = (await state(place))["nodes"]
        assert [each["up"] for each in before] == [True, True]  # type: ignore[attr-defined]
        assert [(each["name"], each["up"], each["state"], each["deaths"]) for each in after] == [  # type: ignore[attr-defined]
            ("p", True, "running", 1),
            ("d", False, "loading", 1),
        ]

    observe(scenario)


def test_a_decision_is_told_with_its_reason_and_what_it_changes() -> None:
    async def scenario(place: Place) -> None:
        step = MixStep(NodeId("d@2"), mix_of("decode", 0, 8), mix_of("mixed", 64, 8))
        place.operator.feed.put(Decision(1.0, DecisionKind.RATIO, "prompts wait", (step,), (), 1.0, 2.0))
        (told,) = (await state(place))["decisions"]  # type: ignore[misc]
        assert (told["kind"], told["reason"], told["steps"]) == ("ratio", "prompts wait", [["d", "decode", "mixed"]])

    observe(scenario)


def test_utilisation_is_told_where_peaks_are_known_and_else_left_out() -> None:
    async def scenario(place: Place) -> None:
        place.observation.sample(1.0)
        place.observation.sample(2.0)
        assert all("mfu" not in each for each in (await state(place))["nodes"])  # type: ignore[attr-defined]

    observe(scenario, Setting(ObservationConfig(peak_flops=1e9)))


def test_the_page_and_its_files_need_no_key_and_what_they_ask_for_needs_an_operators() -> None:
    keys = Keys(Grant("user", "acme"), Grant("boss", is_admin=True))

    async def scenario(place: Place) -> None:
        for path in OPEN_PATHS:
            assert (await place.client.get(path)).status_code in (200, 307), path
        for headers, status in (({}, 401), ({"authorization": keys.header("user")}, 403)):
            answer = await place.client.get("/dashboard/state.json", headers=headers)
            assert answer.status_code == status
        told = await place.client.get("/dashboard/state.json", headers={"authorization": keys.header("boss")})
        assert told.status_code == 200 and told.headers["cache-control"] == "no-store"

    observe(scenario, Setting(access=keys.settings))


def test_the_root_leads_to_the_page_by_a_path_that_a_proxy_may_prefix() -> None:
    async def scenario(place: Place) -> None:
        answer = await place.client.get("/")
        assert (answer.status_code, answer.headers["location"]) == (307, "dashboard")
        text = (await place.client.get("/dashboard")).text
        assert 'src="/' not in text and 'href="/' not in text

    observe(scenario)


def policy_of(answer: httpx.Response) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in answer.headers["content-security-policy"].split(";"))
    return {name: said for name, _, said in parts}


def test_the_policy_allows_nothing_from_elsewhere_and_no_code_in_the_page() -> None:
    async def scenario(place: Place) -> None:
        for path in ("/dashboard", *(f"/dashboard/{name}" for name in FILES)):
            answer = await place.client.get(path)
            policy = policy_of(answer)
            assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            elsewhere = re.findall(r"https?://[^\s\"']+", answer.text)
            assert set(elsewhere) <= {"http://www.w3.org/2000/svg"}, path
            assert " style=" not in answer.text and " onclick" not in answer.text

    observe(scenario)
