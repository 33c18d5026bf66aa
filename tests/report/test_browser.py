"""All reports in headless Chromium: no network access, working controls, readable at two widths."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from clip_negatives.printing import printable
from clip_negatives.report import write_comparison
from tests.pairs import write_csv

from .conftest import HOSTILE
from .test_comparison import QUERIES, made_up, write_answers

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        path = next(filter(None, map(shutil.which, NAMES)), None) or (str(own) if own.exists() else None)
        if path is None:
            pytest.skip(f"needs Chromium: none of {', '.join(NAMES)} is on the PATH, and playwright has no browser installed")
        opened = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("comparison")
    write_csv(output / "test", QUERIES)
    write_answers(output)
    return write_comparison(made_up(test=output), output)


class Watched:
    """A page in the browser, with its messages (console, errors, dialogs) and the URLs of its requests."""

    def __init__(self, browser: Browser, file: Path, **options: object) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Watched]:
    watched = Watched(browser, page, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield watched
    watched.context.close()
    assert watched.messages == []
    assert all(url.startswith(("file://", "data:")) for url in watched.requests)


def visible(page: Page) -> int:
    return page.locator(".pair:visible").count()


def test_filter_and_search(opened: Watched) -> None:
    page, count = opened.page, opened.page.locator("#count")
    assert count.inner_text() == "80 of 80 pairs match, 24 shown."
    assert count.get_attribute("aria-live") == "polite"
    assert visible(page) == 24
    page.get_by_role("radio", name="generated").check()
    assert count.inner_text() == "40 of 80 pairs match, 12 shown."
    assert page.locator('.pair[data-kind="lowest"]:visible').count() == 0
    page.get_by_role("button", name="Show 28 more").click()
    assert visible(page) == 40
    page.get_by_role("radio", name="all").check()
    page.get_by_label("Search the texts").fill("ALERT <script>")
    matching = visible(page)
    assert 0 < matching < 40
    assert page.locator(".pair:visible", has_text=printable(HOSTILE)).count() == matching
    page.get_by_label("Search the texts").fill("no text has these words")
    assert count.inner_text() == "No pair matches."
    assert visible(page) == 0
    page.get_by_label("Search the texts").fill("")
    page.get_by_role("radio", name="same group").check()
    assert visible(page) == page.locator(".pair[data-same]:visible").count() > 0


def test_theme(opened: Watched) -> None:
    page = opened.page

    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.get_by_role("button", name="Dark theme").click()
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark
    page.get_by_role("button", name="Light theme").click()
    assert background() == light


def test_keyboard(opened: Watched) -> None:
    page = opened.page
    focus = "document.activeElement.id || document.activeElement.textContent.trim()"
    order = []
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(page.evaluate(focus))
    assert order[0] == "Skip to the report"
    assert order[1] == "theme"
    assert order[2:7] == ["Summary", "Clusters", "Similarity and weights", "Pairs", "Other choices"]
    page.locator("#search").focus()
    page.keyboard.type("zzzz")
    assert page.locator("#count").inner_text() == "No pair matches."
    page.locator("details > summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("which", ["page", "comparison_page", "check_page"])
def test_all_reports_fit_and_are_readable(
    browser: Browser, which: str, theme: str, width: int, request: pytest.FixtureRequest
) -> None:
    watched = Watched(browser, request.getfixturevalue(which), viewport={"width": width, "height": 900}, color_scheme=theme)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    faint = watched.page.evaluate(CONTRAST)
    assert faint == []
    assert watched.messages == []
    assert all(url.startswith(("file://", "data:")) for url in watched.requests)
    watched.context.close()


def test_without_script_all_pairs_are_there(browser: Browser, page: Path) -> None:
    watched = Watched(browser, page, java_script_enabled=False)
    assert visible(watched.page) == 80
    assert not watched.page.locator("#filter").is_visible()
    assert not watched.page.locator("#theme").is_visible()
    watched.context.close()


def test_pictures_are_drawn(opened: Watched) -> None:
    box = opened.page.locator("svg.thumb use").first.bounding_box()
    assert box is not None
    assert box["width"] > 20


def test_on_paper_everything_is_open(browser: Browser, page: Path) -> None:
    watched = Watched(browser, page, color_scheme="dark")
    watched.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    watched.page.emulate_media(media="print")
    assert visible(watched.page) == 80
    assert watched.page.locator("details:not([open])").count() == 0
    assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    watched.context.close()


CONTRAST = """() => {
  // WCAG 2 AA: contrast of every text with the nearest opaque background.
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const faint = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const drawn = element.closest("svg") !== null;
    const text = parse(drawn ? style.fill : style.color);
    let behind = element;
    while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const back = parse(getComputedStyle(behind ?? document.body).backgroundColor);
    const [high, low] = [light(text), light(back)].sort((a, b) => b - a);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.add(`${element.tagName}.${element.className.baseVal ?? element.className}`);
  }
  return [...faint];
}"""
"""Returns the kinds of elements with too little contrast."""
