"""What each part of the page draws of what it is told. No node is needed for that: a state is told and changed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.browser import CONTRAST, UNNAMED, Browser, Looked, chromium, looking, needs_chromium
from tests.dashboard.served import Served
from tests.metrics.place import Place, Setting

pytestmark = [pytest.mark.slow, needs_chromium]

Told = dict[str, Any]
STAGES_S = [0.001, 0.02, 0.05, 0.002, 0.004, 0.001, 0.9]
BLOCKS = {"free": 50, "cached": 10, "filling": 2, "sealed": 3, "reserved": 5, "receiving": 4, "in_use": 20}
PAINTED = """() => {
  const c = document.querySelector("#lanes"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  let n = 0;
  for (let i = 3; i < d.length; i += 4) if (d[i]) n += 1;
  return n;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    served = Served(Setting())
    yield served.place
    served.stop()


def sample(number: int, at: float, **fields: object) -> Told:
    """Two requests a second came, one was in time; one node of each role."""
    counts = {"came": 2 * number, "ended": 2 * number, "met": number, "counted": 2 * number, "tokens": 9 * number}
    states = {"open": 1, "rows": 1, "queued_tokens": 0, "kv_bytes": 0, "incoming": 1, "leases": number % 3}
    roles = {"prefill": 1, "decode": 1, "mixed": 0, "closed": 0}
    whole = {"number": number, "at": at, **counts, **states, "roles": roles, "blocks": BLOCKS, "wanted": None}
    return {**whole, **fields}


def request(number: int, at: float, **fields: object) -> Told:
    """One that was prefilled on p and decoded on d; every third missed its target."""
    met = number % 3 != 0
    names = {"number": number, "id": f"id{number}", "client_id": f"mine-{number}", "class": "standard", "code": ""}
    times = {"at": at, "wall_s": 1.0, "ttft_s": 0.071 if met else 0.3, "tpot_s": 0.09, "stages_s": STAGES_S}
    targets = {"slo_ttft_s": 0.2, "slo_tpot_s": 0.1, "met": met, "lost_at": "" if met else "queue_prefill"}
    counts = {"prompt_tokens": 9, "cached_tokens": 0, "tokens": 11, "attempts": 1}
    nodes = {"prefill_node": "p", "decode_node": "d"}
    return {**names, **times, **targets, **counts, **nodes, "outcome": "finished", **fields}


def decision(number: int, at: float, **fields: object) -> Told:
    """The node d becomes a prefill node; 4 requests a second are planned for, 3 forecast to be in time."""
    goodput = {"goodput_before_rps": 1.0, "goodput_after_rps": 3.0, "facts": [["planned_rps", 4.0]]}
    base = {
        "number": number,
        "at": at,
        "kind": "ratio",
        "reason": "prompts wait",
        "steps": [["d", "decode", "prefill"]],
    }
    return {**base, **goodput, **fields}


def told(looked: Looked, place: Place, change: Callable[[Told], object]) -> None:
    """The page is told what the gateway says, but for what `change` does to it; everything anew each time."""

    def answer(route: Any) -> None:
        found = route.fetch().json()
        found |= {"samples": [], "requests": [], "decisions": [], "minutes": []}
        change(found)
        route.fulfill(json=found)

    looked.page.route("**/state.json*", answer)
    looked.page.goto(f"{place.url}/dashboard")


def of_late(found: Told, num: int = 120) -> None:
    """Two minutes of samples, requests of the last half minute, and one decision half way."""
    now = found["now"]
    found["samples"] = [sample(each + 1, now - num + each + 1) for each in range(num)]
    found["requests"] = [request(each + 1, now - 30 + 0.2 * each) for each in range(num - 1)]
    found["decisions"] = [decision(1, now - num / 2)]


def test_load_is_drawn_with_what_was_offered_what_was_in_time_and_the_forecast(place: Place, browser: Browser) -> None:
    with looking(browser, place.url) as looked:
        told(looked, place, of_late)
        looked.wait("() => document.querySelectorAll('#load polyline').length === 3")
        assert looked.text("#load-words").startswith("requests per second: offered 2.00, ended 2.00, goodput 1.00")
        assert "forecast 3.00 of 4.00 planned for" in looked.text("#load-words")
        band = looked.page.locator("#load rect.forecast").bounding_box()
        chart = looked.page.locator("#load svg").bounding_box()
        assert band is not None and chart is not None
        assert band["width"] == pytest.approx((chart["width"] - 62) / 2, rel=0.05)
        assert looked.text("#cards .quiet") == "of 2.00 /s offered, 2.00 /s ended, last 10 s"
        looked.check(place.url)


def test_a_decision_is_marked_in_the_ratio_and_told_at_the_top(place: Place, browser: Browser) -> None:
    with looking(browser, place.url) as looked:
        told(looked, place, of_late)
        looked.wait("() => document.querySelectorAll('#roles line.mark').length === 1")
        assert looked.page.locator("#roles path.arrow.area-prefill").count() == 1
        assert looked.page.locator("#roles g title").text_content() == "ratio: prompts wait"
        assert looked.text("#last-decision").startswith("Last decision: ratio: prompts wait: d decode → prefill")
        looked.check(place.url)


def test_the_ratio_at_the_top_tells_what_is_advised_and_what_is_not_there_yet(place: Place, browser: Browser) -> None:
    def advised(found: Told) -> None:
        of_late(found)
        found["decisions"][0] |= {"kind": "advice"}

    def down(found: Told) -> None:
        of_late(found)
        found["nodes"][1]["up"] = False

    for change, words in ((advised, "(advised: 2 prefill)"), (down, "1 prefill → 1 prefill : 1 decode")):
        with looking(browser, place.url) as looked:
            told(looked, place, change)
            looked.wait("([words]) => document.querySelector('#ratio').textContent.includes(words)", words)


def test_a_longer_range_asks_for_minutes_and_draws_them(place: Place, browser: Browser) -> None:
    asked: list[str] = []

    def change(found: Told) -> None:
        now = found["now"]
        found["samples"] = [sample(18_000 + each, now - 120 + each) for each in range(120)]
        if "minute=0" in asked[-1]:
            found["minutes"] = [sample(1 + 60 * each, now - 120 - 60 * (300 - each)) for each in range(300)]

    with looking(browser, place.url) as looked:
        looked.page.on("request", lambda request: asked.append(request.url))
        told(looked, place, change)
        looked.wait("() => document.querySelectorAll('#load polyline').length === 3")
        assert "minute" not in asked[-1]
        looked.page.select_option("#range", "86400")
        looked.wait("() => document.querySelector('#load svg').textContent.includes('h ago')")
        assert "5.0 h ago" in looked.page.locator("#roles svg").text_content()
        looked.page.select_option("#range", "3600")
        looked.wait("() => document.querySelector('#pool svg').textContent.includes('60 min ago')")
        looked.page.select_option("#range", "120")
        looked.wait("() => !document.querySelector('#leases svg').textContent.includes('60 min ago')")
        looked.check(place.url)


def test_handoffs_are_drawn_from_the_node_that_prefilled_to_the_one_that_decoded(
    place: Place, browser: Browser
) -> None:
    def change(found: Told) -> None:
        of_late(found)
        for each in found["requests"][-10:]:
            each["decode_node"] = "p"

    with looking(browser, place.url) as looked:
        told(looked, place, change)
        looked.wait("() => document.querySelectorAll('#handoffs path.flow').length === 1")
        label = looked.page.locator("#handoffs svg").get_attribute("aria-label")
        assert label is not None and "p to d" in label and "10 decoded where" in label
        assert looked.page.locator("#handoffs rect.area-prefill").count() == 1
        assert looked.page.locator("#handoffs rect.area-decode").count() == 1
        looked.wait("() => document.querySelector('#transfers').innerText.includes('4.0 ms')")
        looked.check(place.url)


def test_latencies_are_counted_beside_the_points_and_tell_met_from_missed(place: Place, browser: Browser) -> None:
    with looking(browser, place.url) as looked:
        told(looked, place, of_late)
        looked.wait("() => document.querySelectorAll('#ttft circle').length === 119")
        assert looked.page.locator("#ttft rect.bin.met").count() == 1
        assert looked.page.locator("#ttft rect.bin.missed").count() == 1
        widths = [looked.page.locator(f"#ttft rect.bin.{word}").evaluate("(e) => e.width.baseVal.value") for word in ("met", "missed")]  # fmt: skip # noqa: E501
        assert widths[1] / widths[0] == pytest.approx(39 / 80)
        assert looked.page.locator("#tpot rect.bin.missed").count() == 0
        label = looked.page.locator("#ttft svg").get_attribute("aria-label")
        assert label is not None and label.endswith("target 200 ms: 80 met, 39 missed")


def test_the_stages_stand_against_the_targets_and_the_rest_is_said_to_be_that(place: Place, browser: Browser) -> None:
    def late(found: Told) -> None:
        of_late(found)
        for each in found["requests"]:
            each |= {"ttft_s": 0.4}

    for change, word, is_bad in ((of_late, "of 200 ms", False), (late, "400 ms of 200 ms", True)):
        with looking(browser, place.url) as looked:
            told(looked, place, change)
            looked.wait("() => document.querySelectorAll('.budget').length === 2")
            amount = looked.page.locator("[data-key=TTFT] .amount")
            assert word in amount.inner_text()
            assert ("bad" in str(amount.get_attribute("class"))) is is_bad
            assert looked.page.locator("[data-key=TPOT] .amount").inner_text() == "90.0 ms of 100 ms"
            bars = looked.page.locator("[data-key=TTFT] .track span")
            assert bars.count() == 4 and bars.last.get_attribute("title", timeout=1000).startswith("unaccounted")  # type: ignore[union-attr]


def test_blocks_and_leases_are_drawn_over_time(place: Place, browser: Browser) -> None:
    with looking(browser, place.url) as looked:
        told(looked, place, of_late)
        looked.wait("() => document.querySelectorAll('#pool polygon').length === 6")
        assert looked.text("#pool-words").startswith("25 in use, 5 reserved, 4 in transfer")
        assert looked.page.locator("#leases polyline").count() == 2
        assert looked.text("#leases-words") == "0 leases, 1 attempt whose KV is on its way"
        looked.check(place.url)


def test_a_request_chosen_in_the_timeline_shows_its_trace(place: Place, browser: Browser) -> None:
    with looking(browser, place.url, accept_downloads=True) as looked:
        told(looked, place, of_late)
        looked.wait("() => document.querySelectorAll('#gantt button').length === 60")
        assert looked.page.evaluate(PAINTED) > 1000 and looked.page.locator("#trace").is_hidden()
        looked.page.locator("#lanes").focus()
        looked.page.keyboard.press("ArrowLeft")
        assert "mine-119" in looked.text("#request-words")
        looked.page.keyboard.press("ArrowLeft")
        assert "mine-118" in looked.text("#request-words")
        assert looked.page.locator("#trace-picture rect").count() == 7
        rows = looked.page.locator("#trace-stages tbody tr").evaluate_all("(rows) => rows.map((r) => r.innerText)")
        assert rows[1].split("\t") == ["queue", "p", "1.0 ms", "20.0 ms", "2.0 %"]
        assert rows[-1].split("\t")[0] == "unaccounted"
        with looked.page.expect_download() as download:
            looked.page.locator("#export-one").click()
        assert download.value.suggested_filename == "penstock-request-118.json"
        events = json.loads(Path(download.value.path()).read_text())["traceEvents"]
        assert {event["args"]["request"] for event in events if event["ph"] == "X"} == {"id118"}
        looked.page.locator("#close-trace").click()
        assert looked.page.locator("#trace").is_hidden() and looked.text("#request-words") == ""
        looked.check(place.url)


def test_a_click_on_a_bar_of_the_timeline_chooses_that_request(place: Place, browser: Browser) -> None:
    def one(found: Told) -> None:
        found["requests"] = [request(7, found["now"] - 5.0, wall_s=4.0)]

    with looking(browser, place.url) as looked:
        told(looked, place, one)
        looked.page.select_option("#lanes-span", "10")
        looked.wait("() => document.querySelectorAll('#gantt button').length === 1")
        box = looked.page.locator("#lanes").bounding_box()
        assert box is not None
        looked.page.locator("#lanes").click(position={"x": box["width"] * 0.7, "y": 5})
        assert "mine-7" in looked.text("#request-words")


def test_only_missed_holds_for_the_timeline_and_the_lines(place: Place, browser: Browser) -> None:
    with looking(browser, place.url) as looked:
        told(looked, place, of_late)
        looked.wait("() => document.querySelectorAll('#gantt button').length === 60")
        looked.page.locator("#only-missed").check()
        looked.wait("() => document.querySelectorAll('#gantt button').length === 39")
        label = looked.page.locator("#lanes").get_attribute("aria-label")
        assert label is not None and label.startswith("39 requests")


def test_a_thousand_requests_are_all_in_the_timeline(place: Place, browser: Browser) -> None:
    def many(found: Told) -> None:
        found["requests"] = [request(each + 1, found["now"] - 50 + each * 0.05) for each in range(1000)]

    with looking(browser, place.url) as looked:
        told(looked, place, many)
        looked.page.select_option("#lanes-span", "0")
        looked.wait("() => document.querySelector('#lanes').ariaLabel.startsWith('1000 requests')")
        assert looked.page.evaluate(PAINTED) > 10_000
        looked.check(place.url)


def test_after_another_start_of_the_gateway_nothing_of_the_old_one_is_left(place: Place, browser: Browser) -> None:
    name = ["old"]

    def change(found: Told) -> None:
        found["gateway"] = name[0]
        if name[0] == "old":
            of_late(found)

    with looking(browser, place.url) as looked:
        told(looked, place, change)
        looked.wait("() => document.querySelectorAll('#gantt button').length === 60")
        looked.page.locator("#gantt button").first.click()
        name[0] = "new"
        looked.wait("() => document.querySelectorAll('#gantt button').length === 0")
        assert looked.page.locator("#trace").is_hidden() and looked.text("#request-words") == ""
        assert looked.page.locator("#load svg").count() == 0
        assert "no decision yet" in looked.text("#decisions")
        looked.check(place.url)


def report(folder: Path, name: str, **figures: object) -> Path:
    """A file as `penstock tune --json` writes it."""
    base = {"kind": "point", "ttft_slo_s": 0.5, "tpot_slo_s": 0.05, "chunk": 256, "prefill_chunk": 1024}
    points = [
        {**base, "layout": layout, "rate_rps": rate, "attainment": max(0.0, 1 - rate / most)}
        for layout, most in (("aggregated", 9.0), ("disaggregated:1:3", 6.0), ("disaggregated:2:2", 12.0))
        for rate in (1.0, 2.0, 4.0)
    ]
    path = folder / name
    told = {"command": "penstock tune", "date": "2026-11-26", "figures": figures, "samples": points}
    path.write_text(json.dumps(told))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_runs_are_compared_and_surfaces_are_heat_maps(
    place: Place, browser: Browser, tmp_path: Path, scheme: str
) -> None:
    first = report(tmp_path, "first.json", goodput_rps=2.0, verdict="Disaggregate", only_here=1)
    second = report(tmp_path, "second.json", goodput_rps=3.0, verdict="Do not")
    with looking(browser, place.url, color_scheme=scheme, reduced_motion="reduce") as looked:
        told(looked, place, of_late)
        looked.wait("() => document.querySelector('#state').textContent === 'serving'")
        looked.page.set_input_files("#run-a", first)
        looked.page.set_input_files("#run-b", second)
        looked.wait("() => document.querySelectorAll('.heat').length === 2")
        rows = looked.page.locator("#results table").first.locator("tbody tr")
        lines = [line.split("\t") for line in rows.evaluate_all("(rows) => rows.map((r) => r.innerText)")]
        assert lines == [
            ["goodput_rps", "2", "3", "1.500"],
            ["verdict", "Disaggregate", "Do not", ""],
            ["only_here", "1", "–", ""],
        ]
        heat = looked.page.locator(".heat").first
        assert heat.locator("tbody tr").nth(2).inner_text().split("\t") == [
            "P:D 2:2, chunks of 1024", "92 %", "83 %", "67 %",
        ]  # fmt: skip
        shades = (
            heat.locator("tbody tr")
            .nth(2)
            .locator("td.number")
            .evaluate_all("(cells) => cells.map((c) => getComputedStyle(c).backgroundColor)")
        )
        assert len(set(shades)) == 3
        looked.page.locator("#gantt button").first.click()
        assert looked.page.evaluate(CONTRAST) == []
        assert looked.page.evaluate(UNNAMED) == []
        looked.check(place.url)


@pytest.mark.parametrize(("text", "said"), [("{", "no JSON"), ('{"a": 1}', "no figures"), ("[]", "no figures")])
def test_a_file_that_is_no_report_is_said_to_be_none(
    place: Place, browser: Browser, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "wrong.json").write_text(text)
    with looking(browser, place.url) as looked:
        looked.wait("() => document.querySelector('#state').textContent === 'serving'")
        looked.page.set_input_files("#run-a", tmp_path / "wrong.json")
        looked.wait("([said]) => document.querySelector('#results-problem').textContent.includes(said)", said)
        assert looked.page.locator("#results").inner_text() == ""
        looked.check(place.url)


@pytest.mark.parametrize("width", [320, 360, 768])
def test_no_width_needs_scrolling_sideways_when_everything_is_drawn(place: Place, browser: Browser, width: int) -> None:
    with looking(browser, place.url, width=width) as looked:
        told(looked, place, of_late)
        looked.wait("() => document.querySelectorAll('#gantt button').length === 60")
        looked.page.locator("#gantt button").first.click()
        assert looked.page.evaluate("document.documentElement.scrollWidth") == width
