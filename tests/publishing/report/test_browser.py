"""The pages in a real browser without a network: accessibility, media, keyboard, narrow screens and print."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from publishing.report import report_records as records
from tiers import quick

from sft_hf.publishing.report.comparison import build_comparison
from sft_hf.publishing.report.run_report import build_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLAYWRIGHT = importlib.util.find_spec("playwright") and importlib.util.find_spec("axe_playwright_python")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install it (apt-get install chromium) to run these"),
    pytest.mark.skipif(not PLAYWRIGHT, reason="no playwright and axe-playwright-python here; the test extra has them"),
]

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PAGES = ("text", "image", "speech", "comparison", "hostile")
NARROW = {"width": 360, "height": 740}

OVERFLOWING = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
VIOLATIONS = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map(
    rule => `${rule.id}: ${rule.help}: ${rule.nodes.slice(0, 3).map(node => node.html.slice(0, 200)).join(" | ")}`)"""
DECODED = """async element => {
    if (element.tagName === "IMG") { await element.decode(); return element.naturalWidth; }
    element.preload = "auto"; element.load();
    await new Promise((resolve, reject) => { element.onloadedmetadata = resolve; element.onerror = reject; });
    return element.duration; }"""
CLIPPED = """[...document.querySelectorAll('.scroll, pre')]
    .filter(element => element.scrollWidth > element.clientWidth + 1).map(element => element.ariaLabel)"""
FOCUSED = """() => { const element = document.activeElement;
    return [element.tagName, element.getAttribute("aria-label") || element.textContent.trim().slice(0, 60)]; }"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of the pages, by name."""
    runs = {
        "text": records.single_label([f"label {index}" for index in range(30)]),
        "image": records.single_label(task="image_classification"),
        "speech": records.speech(),
        "hostile": records.single_label(
            ["W" * 3000, '"><script>document.title = "broken"</script>', "\u202eright to left", "", "\U0001f98a"]
        ),
    }
    html = {name: build_report(record, records.shown(record)) for name, record in runs.items()}
    html["comparison"] = build_comparison(
        [replace(runs["image"], name=f"a run with number {index}") for index in range(12)]
    )
    folder = tmp_path_factory.mktemp("pages")
    for name, text in html.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in html}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, pages: dict[str, str]) -> Iterator[Any]:
    """Opens a page without a network; at the end, nothing may have been asked of one or said on the console."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def note_request(request: Any) -> None:
        if not request.url.startswith("data:") and request.url not in pages.values():
            complaints.append(f"requested {request.url}")

    def opened(name: str, **options: Any) -> Any:
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", note_request)
        page.goto(pages[name])
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.mark.parametrize("name", quick(["image"], PAGES))
def test_axe_finds_nothing_in_light_and_dark(open_page, name):
    from axe_playwright_python.base import AXE_SCRIPT

    page = open_page(name)
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    page.evaluate(AXE_SCRIPT)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert page.evaluate(VIOLATIONS) == []


@pytest.mark.parametrize("name", quick(["hostile"], PAGES))
def test_a_phone_scrolls_no_page_sideways(open_page, name):
    page = open_page(name, viewport=NARROW)
    assert page.evaluate(OVERFLOWING) == 0
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    assert page.evaluate(OVERFLOWING) == 0
    assert page.title() != "broken"


@pytest.mark.parametrize("name", quick(["comparison"], ["text", "image", "speech", "comparison"]))
def test_tables_fit_a_common_screen(open_page, name):
    page = open_page(name, viewport={"width": 1280, "height": 800})
    page.evaluate("document.querySelectorAll('details:not(:has(pre))').forEach(element => element.open = true)")
    assert page.evaluate(CLIPPED.replace(".scroll, pre", ".scroll")) == []


@pytest.mark.parametrize(("name", "tag"), [("image", "img"), ("speech", "audio")])
def test_pictures_and_recordings_decode(open_page, name, tag):
    media = open_page(name).query_selector_all(tag)
    assert media and all(element.evaluate(DECODED) > 0 for element in media)


@pytest.mark.parametrize("name", quick(["speech"], ["text", "speech"]))
def test_the_keyboard_reaches_everything(open_page, name):
    page = open_page(name, viewport=NARROW)
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED)[1] == "Skip to the result"
    box = page.query_selector(".skip").bounding_box()
    assert box["x"] >= 0 and box["width"] > 50
    wanted = page.evaluate(
        "[...document.querySelectorAll('summary, .scroll, audio')].filter(e => e.checkVisibility()).length"
    )
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        page.evaluate(
            "document.activeElement.matches('summary, .scroll, audio') && (document.activeElement.dataset.seen = 1)"
        )
        if page.evaluate("document.activeElement === document.body"):
            break
        reached.add(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    assert page.evaluate("document.querySelectorAll('[data-seen]').length") == wanted
    assert "none" not in reached
    summary = page.query_selector("summary")
    summary.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")


@pytest.mark.parametrize("name", quick(["text"], PAGES))
def test_print_clips_nothing_and_opens_what_is_folded(open_page, name):
    page = open_page(name, viewport={"width": 690, "height": 1000}, color_scheme="dark")  # A4 between its margins
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CLIPPED) == []
    if CHROMIUM and page.evaluate("CSS.supports('selector(details::details-content)')"):
        heights = page.evaluate(
            "[...document.querySelectorAll('details > .scroll')].map(e => e.getBoundingClientRect().height)"
        )
        assert all(height > 20 for height in heights)
