"""The course site in headless Chromium, with the network cut off.

Skipped where there is no Chromium (Debian's package `chromium`), no playwright or no axe-core
(`pip install -e .[browser]`); CHROMIUM names another program.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from notebooks.tools.execution import find_notebooks

pytest.importorskip("myst_nb", reason="the site's engine is not installed: pip install -e .[site]")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e .[browser]"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="axe-core is not installed: pip install -e .[browser]",
)

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (set CHROMIUM=...)"),
]

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1200, "height": 900}
PAGES = ["index", "glossary", "survey", "api/attribution", "genindex", "benchmarks/patching_speed"]
NOTEBOOKS = [f"notebooks/{path.stem}" for path in find_notebooks()]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


class Visit:
    """A page of the site in a window, what its console said, and what it asked the network for."""

    def __init__(self, browser: Any, address: str, size: dict[str, int], dark: bool) -> None:
        self.context = browser.new_context(
            viewport=size,
            color_scheme="dark" if dark else "light",
            has_touch=size is PHONE,
        )
        self.address = address
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page = self.context.new_page()
        self.page.set_default_timeout(180_000)  # a busy machine draws slowly
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.route("**/*", self._asked)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _asked(self, route: Any) -> None:
        if route.request.url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def open(self, name: str) -> Any:
        """Go there and look at every figure, so that it is drawn."""
        self.page.goto(f"{self.address}/{name}.html", wait_until="load")
        self.page.evaluate(
            """async () => {
              for (const figure of document.querySelectorAll('.ioi-figure')) {
                if (!figure.clientWidth) continue; // folded away
                figure.scrollIntoView();
                while (!figure.classList.contains('drawn'))
                  await new Promise((done) => setTimeout(done, 30));
              }
            }"""
        )
        return self.page


@pytest.fixture(params=[(DESK, False), (PHONE, True)], ids=["desk, light", "phone, dark"])
def visit(request: pytest.FixtureRequest, chromium: Any, address: str) -> Iterator[Visit]:
    """A window, and the theme that the reader's system asks for."""
    size, dark = request.param
    made = Visit(chromium, address, size, dark)
    yield made
    made.context.close()


@pytest.mark.parametrize("name", [*PAGES, *NOTEBOOKS])
def test_a_page_is_whole(name: str, visit: Visit) -> None:
    page = visit.open(name)
    page.wait_for_function(
        "document.querySelectorAll('details:not([open]) .ioi-figure').length +"
        "document.querySelectorAll('.ioi-figure.drawn').length >="
        "document.querySelectorAll('.ioi-figure').length"
    )
    figures = page.evaluate(
        """() => [...document.querySelectorAll('.ioi-figure.drawn')].map((figure) => ({
          drawn: !!figure.querySelector('.main-svg, .ioi-drawing canvas, .ioi-drawing img'),
          words: figure.querySelector('.ioi-drawing').getAttribute('aria-label'),
          drawing: figure.querySelector('.ioi-drawing').scrollWidth,
          room: figure.clientWidth,
          reachable: figure.querySelector('.ioi-drawing').tabIndex === 0,
          still: figure.querySelector(':scope > img') &&
            getComputedStyle(figure.querySelector(':scope > img')).display,
          cells: [...figure.querySelectorAll('.heatmap-label text')].map((t) => t.textContent),
        }))"""
    )
    assert all("-" not in figure["cells"] for figure in figures), "plotly had no number to write"
    assert all(figure["drawn"] and len(figure["words"]) > 20 for figure in figures)
    assert all(figure["still"] == "none" for figure in figures)
    assert all(figure["drawing"] <= figure["room"] or figure["reachable"] for figure in figures)
    if name in NOTEBOOKS:
        assert len(figures) >= 4
    apart = page.evaluate(
        """() => [...document.querySelectorAll('table.dataframe td')]
          .map((cell) => parseFloat(getComputedStyle(cell).paddingLeft))"""
    )
    assert all(room >= 6 for room in apart), "numbers of two columns run together"
    narrowest = page.evaluate(
        """() => Math.min(...[...document.querySelectorAll('article td')]
          .filter((cell) => cell.clientWidth && cell.innerText.length > 8)
          .map((cell) => cell.getBoundingClientRect().width))"""
    )
    assert narrowest >= 60, "a column of two letters"
    if visit.page.viewport_size == DESK:
        scrolled = page.evaluate(
            """() => [...document.querySelectorAll('article table')]
              .filter((table) => !table.closest('details'))
              .filter((table) => table.scrollWidth > table.closest('div').clientWidth + 2).length"""
        )
        assert scrolled <= 4, "tables are cut off at their right where words could wrap"
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], "the page scrolls sideways"
    assert visit.outside == []
    assert visit.errors == []


@pytest.mark.parametrize("name", [*PAGES, "search", *NOTEBOOKS])
def test_a_page_is_accessible(name: str, visit: Visit) -> None:
    """By axe-core, all that WCAG 2.1 asks at A and AA and a program can see, such as contrast."""
    page = visit.open(name)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    found = axe.Axe().run(page, options={"runOnly": {"type": "tag", "values": rules}})
    wrong = [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]
    assert wrong == []


def test_figures_answer_and_follow_the_theme(visit: Visit) -> None:
    page = visit.open("notebooks/01_direct_logit_attribution")
    box = page.locator(".ioi-figure[data-kind=plotly]").nth(6).locator(".ioi-drawing")
    box.scroll_into_view_if_needed()
    box.locator(".nsewdrag").first.hover()
    page.wait_for_selector(".hoverlayer text")

    colour = "() => getComputedStyle(document.querySelector('.ioi-drawing .xtick text')).fill"
    before = page.evaluate(colour)
    other = page.evaluate(
        """() => {
          const root = document.documentElement;
          root.dataset.theme = root.dataset.theme === 'dark' ? 'light' : 'dark';
          return root.dataset.theme;
        }"""
    )
    page.wait_for_function(f"({colour})() !== {before!r}")
    assert other in ("light", "dark")


def test_mathematics_is_drawn_without_network(visit: Visit) -> None:
    page = visit.open("notebooks/07_lrqp")
    formulas = page.evaluate(
        """() => [...document.querySelectorAll('math')]
          .filter((formula) => !formula.closest('details:not([open])'))
          .map((formula) => formula.getBoundingClientRect())
          .map((box) => [box.width, box.height])"""
    )
    assert len(formulas) >= 3
    assert all(width > 30 and height > 15 for width, height in formulas)
    cut = page.evaluate(
        """() => [...document.querySelectorAll('div.math > math')]
          .filter((formula) => formula.firstElementChild.getBoundingClientRect().left <
            formula.parentElement.getBoundingClientRect().left - 1)
          .map((formula) => formula.textContent)"""
    )
    assert cut == [], "a formula that is too wide can be scrolled to its beginning"
    assert page.evaluate("document.querySelectorAll('merror').length") == 0
    assert "\\frac" not in page.locator("article").inner_text()


def test_search_finds_name_mover(visit: Visit) -> None:
    visit.page.goto(f"{visit.address}/search.html?q=name+mover")
    visit.page.wait_for_selector("#search-results li a")
    visit.page.wait_for_function(
        "document.querySelector('#search-results').innerText.includes('finished')"
    )
    found = visit.page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
    assert any("glossary" in link for link in found)
    assert sum("notebooks/" in link for link in found) >= 5
    assert visit.errors == []


def test_the_keyboard_reaches_the_text(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.address}/notebooks/01_direct_logit_attribution.html")
    page.keyboard.press("Tab")
    assert "Skip" in page.evaluate("document.activeElement.innerText")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main-content"


def test_paper_shows_static_pictures_and_cuts_nothing_off(
    chromium: Any, address: str, tmp_path: Path
) -> None:
    made = Visit(chromium, address, {"width": 700, "height": 1000}, False)  # A4 less its margins
    page = made.open("notebooks/03_head_decomposition")
    page.emulate_media(media="print")
    shown = page.evaluate(
        """() => [...document.querySelectorAll('.ioi-figure')]
          .filter((figure) => !figure.closest('details:not([open])'))
          .map((figure) => ({
            still: getComputedStyle(figure.querySelector(':scope > img')).display,
            live: getComputedStyle(figure.querySelector('.ioi-drawing')).display,
            width: figure.querySelector(':scope > img').getBoundingClientRect().width,
          }))"""
    )
    assert len(shown) > 8
    assert all((f["still"], f["live"]) == ("block", "none") for f in shown)
    assert all(0 < f["width"] <= 700 for f in shown)
    cut = page.evaluate(
        """() => [...document.querySelectorAll('article pre, article table')]
          .filter((part) => part.getBoundingClientRect().right > innerWidth + 1)
          .map((part) => part.innerText.slice(0, 80))"""
    )
    assert cut == []
    assert len(page.pdf(format="A4")) > 100_000
    made.context.close()
