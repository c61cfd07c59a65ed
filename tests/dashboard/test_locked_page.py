"""The page where keys are asked for, and where somebody sends names that look like code. No node is needed for that."""

from collections.abc import Iterator

import httpx
import pytest

from cluster.gateway.keys import Grant
from tests.dashboard.browser import Browser, chromium, looking, needs_chromium
from tests.dashboard.served import Served
from tests.gateway.keyed import Keys
from tests.metrics.place import Place, Setting

pytestmark = [pytest.mark.slow, needs_chromium]
KEYS = Keys(Grant("user", "acme"), Grant("boss", is_admin=True))
DENIED = "Failed to load resource: the server responded with a status of"
"""What Chromium writes to its console of every 401 and 403."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def locked() -> Iterator[Place]:
    served = Served(Setting(access=KEYS.settings))
    yield served.place
    served.stop()


@pytest.fixture
def unlocked() -> Iterator[Place]:
    served = Served(Setting())
    yield served.place
    served.stop()


def key(name: str) -> str:
    return KEYS.header(name).removeprefix("Bearer ")


def test_a_locked_page_asks_for_a_key_says_what_is_wrong_with_one_and_opens(locked: Place, browser: Browser) -> None:
    with looking(browser, locked.url) as looked:
        looked.wait("() => !document.querySelector('#ask-key').hidden")
        assert looked.page.evaluate("document.activeElement.id") == "key"
        assert looked.text("#state") == "locked" and looked.text("#key-problem") == ""
        for wrong, said in (("psk-wrong", "not known"), (key("user"), "operator")):
            looked.page.fill("#key", wrong)
            looked.page.keyboard.press("Enter")
            looked.wait("([said]) => document.querySelector('#key-problem').textContent.includes(said)", said)
        assert looked.page.locator(".node").count() == 0 and looked.page.locator("#main").is_hidden()
        looked.page.fill("#key", key("boss"))
        looked.page.keyboard.press("Enter")
        looked.wait("() => document.querySelector('#state').textContent === 'serving'")
        assert looked.page.locator(".node").count() == 2
        assert looked.page.locator("#ask-key").is_hidden() and looked.page.locator("#main").is_visible()
        assert looked.page.evaluate("JSON.stringify(localStorage)") == "{}"
        assert not [error for error in looked.errors if not error.startswith(DENIED)]


def test_a_name_that_looks_like_code_is_shown_as_text(unlocked: Place, browser: Browser) -> None:
    name = "<img src=x onerror=alert(1)>"
    body = {"model": "tiny", "prompt": "fox", "max_tokens": 3}
    answer = httpx.post(
        f"{unlocked.url}/v1/completions", json=body, headers={"x-request-id": name}, trust_env=False, timeout=30
    )
    assert answer.status_code == 200
    with looking(browser, unlocked.url) as looked:
        looked.wait("() => document.querySelectorAll('#gantt button').length === 1")
        looked.page.locator("#gantt button").click()
        assert name in looked.text("#request-words")
        assert looked.page.locator("img").count() == 0
        looked.check(unlocked.url)


def test_a_server_that_is_gone_is_said_to_be_so(browser: Browser) -> None:
    served = Served(Setting())
    with looking(browser, served.place.url) as looked:
        looked.wait("() => document.querySelector('#state').textContent === 'serving'")
        served.stop()
        looked.wait("() => document.querySelector('#state').textContent === 'no answer'")
        assert looked.page.locator(".node").count() == 2
