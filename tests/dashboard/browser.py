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

CONTRAST = """() => {
  const rgb = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color(srgb") ? found.map((v, i) => (i < 3 ? v * 255 : v)) : found;
  };
  const light = (c) => c.slice(0, 3).map((v) => (v /= 255, v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = rgb(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll("body *:not(svg *):not(option)")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}: ${e.textContent.slice(0, 40)}`);
  }
  return poor;
}"""
"""Texts that do not stand out from what is behind them."""

UNNAMED = """() => {
  const wrong = [];
  for (const e of document.querySelectorAll("input, select, textarea")) if (!e.labels.length) wrong.push(e.id);
  for (const e of document.querySelectorAll("button")) if (!e.textContent.trim()) wrong.push("a button");
  for (const e of document.querySelectorAll("svg, [role=img]")) if (!e.getAttribute("aria-label")) wrong.push("a picture");
  for (const e of document.querySelectorAll("section")) if (!document.getElementById(e.getAttribute("aria-labelledby"))) wrong.push("a section");
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) wrong.push("an id twice");
  if (document.querySelectorAll("h1").length !== 1 || document.querySelectorAll("main").length !== 1) wrong.push("h1, main");
  return wrong;
}"""  # noqa: E501
"""What a screen reader could not name."""

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
