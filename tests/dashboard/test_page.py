"""The page in a real browser, over a real service: what it shows is so, and everybody can use it."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.api.v1 import inference_pb2 as pb
from tests.dashboard.browser import CONTRAST, UNNAMED, Browser, Looked, chromium, looking, needs_chromium
from tests.metrics.place import Samples, samples_of
from tests.service.running import Running, running

pytestmark = [pytest.mark.slow, needs_chromium]

RISING = {"penstock_node_seconds_total", "penstock_cost_total"}
"""Rise by themselves, so a page and a scrape a moment later need not agree."""

FOCUSED = """() => {
  const e = document.activeElement;
  return [e.id || e.className || e.tagName, getComputedStyle(e).outlineStyle];
}"""


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running("--prefill", "1", "--decode", "1", "--peak-tflops", "0.1", "--node-cost-per-hour", "2") as service:
        slo = pb.SLO(ttft_s=30.0, tpot_s=30.0)
        for tokens in (5, 20, 40):
            params = pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
            service.ask(
                pb.GenerateRequest(text="Once upon a time", request_id=f"story-{tokens}", slo=slo, sampling=params)
            )
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def url_of(service: Running) -> str:
    assert service.service.http is not None
    return service.service.http.url


def scrape(service: Running) -> Samples:
    with urllib.request.urlopen(f"{url_of(service)}/metrics") as answer:
        return samples_of(answer.read().decode())


def sums(samples: Samples) -> dict[str, float]:
    found: dict[str, float] = {}
    for (name, _), value in samples.items():
        found[name] = found.get(name, 0.0) + value
    return found


def shown(looked: Looked) -> dict[str, float]:
    rows = looked.page.locator("#totals tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [row.dataset.key, Number(row.cells[1].dataset.value)])"
    )
    return {name: value for name, value in rows if name not in RISING}


def opened(looked: Looked) -> None:
    looked.wait("() => document.querySelector('#state').textContent === 'serving'")
    looked.wait("() => document.querySelectorAll('#gantt button').length >= 3")


def test_the_numbers_are_those_of_the_metrics_and_nothing_goes_wrong(service: Running, browser: Browser) -> None:
    with looking(browser, url_of(service)) as looked:
        opened(looked)
        service.until_idle(2)
        looked.wait("() => document.querySelectorAll('#roles svg').length === 1")
        with looked.page.expect_response("**/state.json*"):
            pass
        now = sums(scrape(service))
        looked.wait(
            "([want]) => Number(document.querySelector('[data-key=penstock_node_busy_seconds_total]')"
            ".cells[1].dataset.value) === want",
            now["penstock_node_busy_seconds_total"],
        )
        on_page = shown(looked)
        assert on_page["penstock_requests_total"] == on_page["penstock_goodput_requests_total"] == 3
        assert len(on_page) > 20
        assert on_page == {name: now[name] for name in on_page}
        assert looked.text("#cards div:nth-child(2) .quiet") == "3 of 3 since the start"
        assert looked.page.locator("#ttft svg circle.met").count() == 3
        looked.check(url_of(service))


def test_nodes_show_their_role_their_blocks_and_what_they_read(service: Running, browser: Browser) -> None:
    with looking(browser, url_of(service)) as looked:
        opened(looked)
        assert looked.text("[data-key='prefill-0'] .role") == "prefill"
        assert "8,192" in looked.text("[data-key='decode-0'] .pool") or "free" in looked.text(
            "[data-key='decode-0'] .pool"
        )
        looked.wait("() => document.querySelector('#transfers').innerText.includes('prefill-0 by shm')")
        looked.wait("() => document.querySelector('[data-key=\"decode-0\"] .more').textContent.includes('MFU')")
        looked.check(url_of(service))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_every_text_stands_out(service: Running, browser: Browser, scheme: str) -> None:
    with looking(browser, url_of(service), color_scheme=scheme, reduced_motion="reduce") as looked:
        opened(looked)
        assert looked.page.evaluate("document.documentElement.dataset.theme") == scheme
        looked.page.locator("#gantt button").first.click()
        assert looked.page.evaluate(UNNAMED) == []
        assert looked.page.evaluate(CONTRAST) == []
        bar = looked.page.locator(".blocks span").first
        assert bar.evaluate("(e) => getComputedStyle(e).transitionDuration") == "0s"
        assert looked.page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [320, 360, 768])
def test_no_width_needs_scrolling_sideways(service: Running, browser: Browser, width: int) -> None:
    with looking(browser, url_of(service), width=width) as looked:
        opened(looked)
        looked.wait("() => document.querySelectorAll('#roles svg').length === 1")
        assert looked.page.evaluate("document.documentElement.scrollWidth") == width


def test_the_keyboard_reaches_everything_and_shows_where_it_is(service: Running, browser: Browser) -> None:
    with looking(browser, url_of(service)) as looked:
        opened(looked)
        looked.page.keyboard.press("Tab")
        assert looked.page.evaluate(FOCUSED)[0] == "skip"
        looked.page.keyboard.press("Enter")
        assert looked.page.evaluate("document.activeElement.id") == "main"
        met = []
        for _ in range(60):
            looked.page.keyboard.press("Tab")
            met.append(looked.page.evaluate(FOCUSED))
            if met[-1][0] == "tokens":
                break
        assert {"range", "only-missed", "lanes-span", "lanes", "export", "prompt", "tokens"} <= {
            name for name, _ in met
        }
        assert all(outline == "solid" for _, outline in met), met
        first = looked.page.locator("#gantt button").first
        first.focus()
        looked.page.keyboard.press("ArrowDown")
        assert looked.page.evaluate("document.activeElement.parentElement.dataset.key") == "2"
        assert "story-20" in looked.text("#request-words") and "met its targets" in looked.text("#request-words")


def test_the_trace_for_perfetto_has_a_slice_for_every_stage(service: Running, browser: Browser) -> None:
    with looking(browser, url_of(service), accept_downloads=True) as looked:
        opened(looked)
        with looked.page.expect_download() as download:
            looked.page.locator("#export").click()
        trace = json.loads(Path(download.value.path()).read_text())
        names = {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
        slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
        assert names >= {"gateway", "prefill-0", "decode-0"}
        assert {event["name"] for event in slices} >= {"admit", "prefill", "decode"}
        assert all(event["dur"] > 0 and event["ts"] > 1e15 for event in slices)


def test_the_theme_can_be_chosen_and_is_kept(service: Running, browser: Browser) -> None:
    with looking(browser, url_of(service), color_scheme="light") as looked:
        opened(looked)
        looked.page.select_option("#theme", "dark")
        assert looked.page.evaluate("document.documentElement.dataset.theme") == "dark"
        looked.page.reload()
        looked.wait("() => document.documentElement.dataset.theme === 'dark'")


def test_only_missed_requests_are_shown_where_that_is_asked_for(service: Running, browser: Browser) -> None:
    with looking(browser, url_of(service)) as looked:
        opened(looked)
        looked.page.locator("#only-missed").check()
        looked.wait("() => document.querySelectorAll('#gantt button').length === 0")
        assert looked.text("#gantt") == "none of the last requests missed a target"


def test_the_playground_shows_the_answer_as_it_comes(service: Running, browser: Browser) -> None:
    with looking(browser, url_of(service)) as looked:
        opened(looked)
        looked.page.locator("#prompt").press("Control+a")
        looked.page.keyboard.type("What is a penstock?")
        looked.page.get_by_role("button", name="Send").click()
        looked.wait("() => document.querySelector('#answer-words').textContent.startsWith('TTFT')")
        assert "water" in looked.text("#answer")
        looked.page.locator("#tokens").fill("1000000")
        looked.page.evaluate("document.querySelector('#play').noValidate = true")
        looked.page.get_by_role("button", name="Send").click()
        looked.wait("() => document.querySelector('#answer-words').textContent.includes('context')")


def test_a_killed_node_is_red_within_two_looks_and_comes_back(service: Running, browser: Browser) -> None:
    with looking(browser, url_of(service)) as looked:
        opened(looked)
        assert looked.page.locator(".node.down").count() == 0
        service.kill("decode-0")
        for _ in range(2):
            with looked.page.expect_response("**/state.json*"):
                pass
        looked.page.evaluate("() => new Promise(requestAnimationFrame)")
        assert looked.page.locator(".node.down").count() == 1
        assert looked.page.locator("[data-key='decode-0'].down").count() == 1
        looked.wait("() => document.querySelectorAll('.node.down').length === 0")
        assert "1 death" in looked.text("[data-key='decode-0'] .more")
        looked.check(url_of(service))
