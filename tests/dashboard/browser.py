"""A real Chromium, and a page of it that notes whatever goes wrong."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is found (Debian: apt-get install chromium)")

Browser, Page = sync_api.Browser, sync_api.Page


@dataclass
class Looked:
    """What a page did: errors of its console and its code, and every address that it asked."""

    page: Page
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def wait(self, condition: str, *values: object) -> None:
        """Until JavaScript finds it true."""
        self.page.wait_for_function(condition, arg=list(values), timeout=30_000)

    def text(self, selector: str) -> str:
        """What stands there."""
        return str(self.page.locator(selector).first.inner_text())

    def check(self, url: str) -> None:
        """Nothing went wrong, and nobody else was asked for anything."""
        assert self.errors == []
        assert {urlsplit(each).netloc for each in self.asked if not each.startswith(("data:", "blob:"))} == {
            urlsplit(url).netloc
        }


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for the length of a block."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def looking(browser: Browser, url: str, width: int = 1280, **wishes: object) -> Iterator[Looked]:
    """The dashboard in a context of its own; `wishes` are the context's."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **wishes)
    page = context.new_page()
    looked = Looked(page)
    page.on("console", lambda message: message.type in ("error", "warning") and looked.errors.append(message.text))
    page.on("pageerror", lambda error: looked.errors.append(str(error)))
    page.on("request", lambda request: looked.asked.append(request.url))
    page.goto(f"{url}/dashboard")
    yield looked
    context.close()
