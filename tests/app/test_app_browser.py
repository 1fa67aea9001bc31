"""The app as people meet it: headless Chromium through every page, with a real model on the live page."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlparse

import pypdf
import pytest
from conftest import CHECKOUT
from fake_run import HOSTILE, Fake, write_fake_run
from pdf_type import type_sizes

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (kvattn[dev])")
sync_api.expect.set_options(timeout=60_000)  # a busy machine draws a figure in half a minute

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH to drive the app with")

CONTRAST = Path(__file__).with_name("contrast.js").read_text()
SHADED = "iframe[title='the prompt, shaded']"
SMALL = Fake(questions=9, orders=4, layers=6, heads=4, methods=("dense", "true-mask", "naive", "null-edit"))
PAGES = {
    "": "Overview",
    "live": "Judge live",
    "heatmaps": "Heatmaps",
    "dilution": "Dilution",
    "shuffle": "Shuffle",
    "compare": "Compare models",
    "frontier": "Frontier and gate",
}
# Streamlit's client looks for its server under the page's own path first, and finds it at the root.
PROBES = re.compile(r"/_stcore/(health|host-config)$")


_SETTLED = """() => {
    const now = performance.now(), app = document.querySelector('[data-testid=stApp]');
    const figures = [...document.querySelectorAll('[data-testid=stPlotlyChart]')];
    const drawn = figures.every(f => f.querySelector('.main-svg'));
    const loading = document.querySelector('[data-testid=stSkeleton]');
    const idle = app?.dataset.testScriptState === 'notRunning' && drawn && !loading;
    window.idleSince = idle ? window.idleSince ?? now : undefined;
    return idle && now - window.idleSince > 500;
}"""


def eventually(read: Callable[[], Any], wanted: Any, patience_s: float = 60) -> None:
    """Asserts that what is read becomes what is wanted: a figure may be drawn once more after a page has settled."""
    end = time.monotonic() + patience_s
    while (found := read()) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    assert found == wanted


class Visitor:
    """A browser window that remembers everything that should not happen."""

    def __init__(self, page: Any, root: str) -> None:
        self.page, self.root = page, root
        self.troubles: list[str] = []
        page.set_default_timeout(120_000)  # a busy machine draws a figure in half a minute
        page.on("console", self._console)
        page.on("pageerror", lambda e: self.troubles.append(f"page error: {e}"))
        page.on("dialog", lambda d: (self.troubles.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error" and not PROBES.search(urlparse(message.location.get("url", "")).path):
            self.troubles.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        parts = urlparse(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "localhost":
            self.troubles.append(f"request to {parts.hostname}")

    def go(self, path: str) -> None:
        self.page.goto(f"{self.root}/{path}")
        self.settle()

    def settle(self) -> None:
        """Waits until the script has run and every figure is drawn, and nothing has moved for half a second: on a busy
        machine a script may begin late."""
        self.page.wait_for_selector("h2")
        self.page.evaluate("() => { delete window.idleSince }")
        self.page.wait_for_function(_SETTLED, timeout=240_000)

    def check(self) -> None:
        """Nothing failed, nothing was asked of another machine, and the page fits the window."""
        assert self.troubles == []
        assert self.page.locator("[data-testid=stException]").count() == 0
        assert self.page.get_by_text("This cannot be shown").count() == 0
        wide = "[document.documentElement.scrollWidth, document.querySelector('[data-testid=stMain]').scrollWidth]"
        assert max(self.page.evaluate(wide)) <= self.page.viewport_size["width"]
        assert self.page.title() in PAGES.values() or self.page.title() == "kvattn"

    def heatmap(self) -> Any:
        """The first chart that has a heatmap: what else is drawn before it does not matter."""
        return self.page.locator(".js-plotly-plot", has=self.page.locator(".heatmaplayer")).first

    def framed(self, layer: int, head: int) -> None:
        """Waits until every panel of the heatmap frames that cell and no other."""
        shapes = "f => f._fullLayout.shapes.map(s => [s.x0 + 0.5, s.y0 + 0.5])"
        eventually(lambda: set(map(tuple, self.heatmap().evaluate(shapes))), {(layer, head)})

    def defined(self) -> int:
        """Opens and closes every definition of the page; how many there are."""
        buttons = self.page.get_by_role("button", name="Definition", exact=True)
        buttons.first.wait_for()
        for i in range(buttons.count()):
            buttons.nth(i).click()
            shown = self.page.locator("[data-testid=stPopoverBody]")
            shown.wait_for()
            assert len(shown.inner_text()) > 60
            self.page.keyboard.press("Escape")
            shown.wait_for(state="hidden")
        return buttons.count()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()
        self.settle()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2: str) -> Iterator[str]:
    """The address of `kvattn app` over three made-up runs, one of them hostile, with the user's prepared models."""
    home = tmp_path_factory.mktemp("browser")
    runs = home / "runs"
    write_fake_run(runs / "plain", SMALL)
    write_fake_run(runs / "deep", replace(SMALL, layers=9, seed=3))
    nasty = ("dense", "<img src=x onerror=\"document.title='owned'\">", "**b** $x^2$", "null-edit")
    write_fake_run(runs / "<b>*hostile*", replace(SMALL, hostile=True, methods=nasty, questions=4))
    cache = home / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(Path(smollm2).parent)
    port = _free_port()
    command = [sys.executable, "-m", "kvattn", "app", str(runs), "--port", str(port), "--no-browser"]
    env = {**os.environ, "KVATTN_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    log = (home / "log").open("w")
    process = subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://localhost:{port}/_stcore/health", process, home / "log")
        yield f"http://localhost:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sync_api.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield made
        made.close()


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """One visitor's browser, which remembers the app's scripts from page to page."""
    made = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    yield made
    made.close()


@pytest.fixture
def window(context: Any, server: str) -> Iterator[Visitor]:
    page = context.new_page()
    yield Visitor(page, server)
    page.close()


def test_it_listens_to_this_machine_alone(server: str) -> None:
    port = urlparse(server).port
    addresses = {a[4][0] for a in socket.getaddrinfo(socket.gethostname(), port, type=socket.SOCK_STREAM)}
    for address in addresses - {"127.0.0.1", "::1"}:
        if address.startswith("127."):
            continue
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as s:
            s.settimeout(2)
            assert s.connect_ex((address, port)) != 0


def test_what_reuse_does_is_on_the_first_screen_and_a_row_of_the_table_opens_its_run(window: Visitor) -> None:
    window.go("")
    screen = window.page.viewport_size["height"]
    sentence = window.page.get_by_text("picks the same candidate as dense in").first.bounding_box()
    threads = window.page.locator(".sankey").first.bounding_box()
    assert sentence["y"] < threads["y"] < threads["y"] + threads["height"] < screen
    names = {n for n in ("plain", "deep") if f"run={n}" not in window.page.url}
    table = window.page.locator("[data-testid=stDataFrame]").nth(1)
    table.scroll_into_view_if_needed()
    for row in range(3):  # the first column of each row is its mark
        table.locator(".dvn-scroller").click(position={"x": 15, "y": 52 + 35 * row})
        window.settle()
        if any(f"run={n}" in window.page.url for n in names):
            break
    else:
        raise AssertionError(window.page.url)
    window.check()


def test_a_walk_as_the_first_user_takes_it(browser: Any, window: Visitor) -> None:
    """A flip is seen before anything is clicked; a run is chosen and stays on six pages and under the back button; what
    is edited is there after another page; the link shows the same in a second browser; a figure comes out as wide as a
    column."""
    pytest.importorskip("kaleido", reason="static pictures need kaleido (kvattn[export])")
    page = window.page
    window.go("")
    screen = page.viewport_size["height"]
    for seen in (page.get_by_text("picks the same candidate as dense in").first, page.locator(".sankey").first):
        box = seen.bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] < screen
    page.locator("[data-testid=stSidebar] [data-testid=stSelectbox]").first.click()
    page.get_by_role("option", name="deep", exact=True).click()
    window.settle()

    chosen = page.locator("[data-testid=stSidebar] [data-testid=stSelectbox] input")
    for title in ("Compare models", "Heatmaps", "Frontier and gate", "Dilution", "Shuffle", "Overview"):
        page.get_by_role("link", name=title, exact=True).click()
        page.wait_for_function(f"document.querySelector('h2')?.innerText === '{title}'")
        window.settle()
        assert title == "Compare models" or (chosen.first.input_value(), "run=deep" in page.url) == ("deep", True), (
            title
        )
    for _ in range(3):
        page.go_back()
        window.settle()
        assert (chosen.first.input_value(), "run=deep" in page.url) == ("deep", True), page.url

    def live() -> list[str]:
        page.get_by_role("link", name="Judge live", exact=True).click()
        page.get_by_label("Question", exact=True).wait_for()
        window.settle()
        return [page.get_by_label(x).input_value() for x in ("Question", "Slot 2: candidate 2")]

    live()
    page.get_by_label("Slot 2: candidate 2").fill("The answer is 4711")
    page.keyboard.press("Tab")
    window.settle()
    edited, link = live(), page.url
    assert edited[1] == "The answer is 4711"
    page.get_by_role("link", name="Overview", exact=True).click()
    window.settle()
    assert live() == edited
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    other = Visitor(context.new_page(), window.root)
    other.page.goto(link)
    other.page.get_by_label("Question", exact=True).wait_for()
    assert [other.page.get_by_label(x).input_value() for x in ("Question", "Slot 2: candidate 2")] == edited
    other.check()
    context.close()

    page.get_by_role("link", name="Heatmaps", exact=True).click()
    window.settle()
    page.get_by_role("button", name="Download").first.click()
    with page.expect_download(timeout=120_000) as got:
        page.get_by_role("button", name="For a paper: one column (zip)").click()
    with zipfile.ZipFile(got.value.path()) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".pdf"))
        drawn = pypdf.PdfReader(io.BytesIO(archive.read(name))).pages[0]
    assert float(drawn.mediabox.width) / 72 == pytest.approx(3.35, abs=0.05)
    assert all(7 <= size <= 9 for size in type_sizes(drawn))
    window.check()


@pytest.mark.parametrize(("scheme", "run"), [("light", "plain"), ("dark", "<b>*hostile*")])
def test_every_page_in_light_and_dark(browser: Any, server: str, scheme: Any, run: str) -> None:
    """Ink can be read, a run's own text stays text, every definition is a click away."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    window = Visitor(context.new_page(), server)
    window.go(f"?run={quote(run)}")
    main, inks = window.page.locator("[data-testid=stMain]"), set()
    for path, title in PAGES.items():
        window.page.get_by_role("link", name=title, exact=True).click()
        window.page.wait_for_function(f"document.querySelector('h2')?.innerText === '{title}'")
        window.settle()
        window.check()
        assert window.page.evaluate(CONTRAST) == []
        assert urlparse(window.page.url).path == f"/{path}"
        figures = window.page.locator(".js-plotly-plot")
        if path not in ("", "live"):
            figures.first.wait_for()
            inks.update(figures.evaluate_all("all => all.map(f => f._fullLayout.font.color)"))
        if run != "plain" and path == "shuffle":
            window.page.get_by_text("The question and its candidates").click()
            window.page.locator("code", has_text="Total: 4 < 5").first.wait_for()
        if run != "plain" and path == "compare":
            window.go(f"compare?runs={quote(run)}")
        if path != "live":
            assert main.locator("img, script, iframe, .katex, a[href*=example]").count() == 0
            assert window.defined() > 0
    assert inks == {"#e6e9ef" if scheme == "dark" else "#20242c"}
    assert "owned" not in window.page.title()
    window.check()
    context.close()


def test_a_deep_link_opens_the_head_that_it_names(window: Visitor) -> None:
    window.go("heatmaps?run=deep&method=naive&base=dense&slot=3&layer=7&head=2&sinks=out")
    sync_api.expect(window.page.get_by_role("heading", name="Layer 7, head 2")).to_be_visible()
    window.framed(layer=7, head=2)
    window.check()
    before = window.page.url
    window.page.reload()
    window.settle()
    assert window.page.url == before
    sync_api.expect(window.page.get_by_role("heading", name="Layer 7, head 2")).to_be_visible()
    window.framed(layer=7, head=2)


def test_a_click_anywhere_on_a_cell_opens_its_head(window: Visitor) -> None:
    window.go("heatmaps?run=plain&slot=2")
    for layer, head, across, down in ((1, 3, 0.5, 0.5), (4, 0, 0.92, 0.08), (2, 1, 0.08, 0.92)):
        box = window.heatmap().locator(".nsewdrag").first.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] * (layer + across) / 6, box["y"] + box["height"] * (head + down) / 4
        window.page.mouse.move(x - 2, y - 2)
        window.page.mouse.move(x, y)
        window.page.wait_for_selector(".hoverlayer .hovertext")
        window.page.mouse.click(x, y)
        window.page.get_by_role("heading", name=f"Layer {layer}, head {head}").wait_for()
        window.settle()
        assert f"layer={layer}" in window.page.url
        assert f"head={head}" in window.page.url
    window.check()


def test_a_figure_can_be_taken_home(window: Visitor, tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="static pictures need kaleido (kvattn[export])")
    window.go("heatmaps?run=plain&method=naive&base=dense&slot=2")
    window.page.get_by_role("button", name="Download").first.click()
    starts = {"HTML": b"<!doctype html>", "CSV": b"layer,head,", "SVG": b"<svg", "PNG": b"\x89PNG", "PDF": b"%PDF"}
    for kind, start in starts.items():
        with window.page.expect_download(timeout=60_000) as got:
            window.page.get_by_role("button", name=kind, exact=True).click()
        data = Path(got.value.path()).read_bytes()
        assert got.value.suggested_filename == f"plain-heatmap-naive-against-dense-slot-2-sinks-kept.{kind.lower()}"
        assert data[: len(start)] == start
        assert len(data) > 100
    with window.page.expect_download(timeout=60_000) as got:
        window.page.get_by_role("button", name="For a paper: one column (zip)").click()
    with zipfile.ZipFile(got.value.path()) as archive:
        assert {Path(n).suffix for n in archive.namelist()} == {".pdf", ".svg", ".csv", ".txt", ".bib"}
        assert b"Run plain: " in archive.read("caption.txt")
    window.check()


CHANGES = {
    "dilution": ("Per token", "Sinks out", "Flips"),
    "heatmaps": ("Sinks out",),
    "compare": ("Share of the row",),
}


@pytest.mark.parametrize("path", CHANGES)
def test_the_url_restores_a_view_in_another_window(browser: Any, window: Visitor, path: str) -> None:
    drawn = (
        "() => [...document.querySelectorAll('.js-plotly-plot')].map(f => JSON.stringify(f.data.map(t => t.y || t.z)))"
    )
    window.go(f"{path}?run=plain&runs=plain&runs=deep")
    before = window.page.evaluate(drawn)
    for label in CHANGES[path]:
        window.page.get_by_text(label, exact=True).click()
        window.settle()
    window.check()
    link, figures = window.page.url, window.page.evaluate(drawn)
    assert figures != before
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    other = Visitor(context.new_page(), window.root)
    other.page.goto(link)
    other.settle()
    assert other.page.url == link
    eventually(lambda: other.page.evaluate(drawn), figures)
    other.check()
    context.close()


def test_a_sentence_and_its_definition_share_a_line_in_narrow_columns(window: Visitor) -> None:
    window.go("shuffle?run=plain")
    named = (
        "[...document.querySelectorAll('[data-testid=stPopover]')].filter(p => p.innerText.startsWith('Definition'))"
    )
    boxes = "[p.getBoundingClientRect(), p.parentElement.previousElementSibling.getBoundingClientRect()]"
    middle = "(p.top + p.bottom) / 2"
    level = f"found.every(([p, c]) => c.top < {middle} && {middle} < c.bottom)"
    # The page is still being drawn: the layout that counts is the one it settles in.
    assert window.page.wait_for_function(
        f"() => {{ const found = {named}.map(p => {boxes}); return found.length >= 4 && {level} }}"
    )


def test_a_figure_on_a_phone_is_scrolled_and_not_squeezed(window: Visitor) -> None:
    window.page.set_viewport_size({"width": 390, "height": 800})
    window.go("?run=plain")
    figures = window.page.locator(".stPlotlyChart .main-svg:first-child")
    widths = lambda: figures.evaluate_all("all => all.map(f => Number(f.getAttribute('width')))")  # noqa: E731
    eventually(lambda: len(widths()) >= 3 and min(widths()) >= 600, wanted=True)
    window.check()


def test_flips_show_their_candidates(window: Visitor) -> None:
    window.go("shuffle?run=plain&flow=naive")
    window.page.get_by_text("The question and its candidates").click()
    window.page.get_by_text("Adding the boxes gives").first.wait_for()
    assert window.page.get_by_text("dense's pick").count() >= 1
    bars = window.page.locator(".js-plotly-plot .barlayer").last.locator(".point path")  # the last panel's: naive's
    bars.first.scroll_into_view_if_needed()
    boxes = bars.evaluate_all("all => all.map(p => p.getBoundingClientRect()).map(b => [b.x, b.y, b.width, b.height])")
    bar, (x, y, width, height) = max(enumerate(boxes), key=lambda found: found[1][3])
    window.page.mouse.move(x + width / 2 - 2, y + height / 2)
    window.page.mouse.move(x + width / 2, y + height / 2)
    window.page.mouse.click(x + width / 2, y + height / 2)
    window.page.wait_for_url(re.compile(f"flips-to={bar + 1}"))
    window.settle()
    window.check()


def test_live_judging_swapping_and_hostile_candidates(window: Visitor, tmp_path: Path) -> None:
    page = window.page
    window.go("live?model=smollm2-135m&source=typed&candidates=3&live-methods=dense&live-methods=naive")
    window.press("Judge")
    page.get_by_role("heading", name="Decisions").wait_for()
    sync_api.expect(page.locator(".js-plotly-plot")).to_have_count(5)
    shaded = page.frame_locator(SHADED)
    sync_api.expect(shaded.get_by_text(re.compile(r"^slots: (\d+\.\d% ?){3}$"))).to_have_count(2)
    window.press("Swap")
    page.get_by_role("heading", name="What moved").wait_for()
    assert page.get_by_role("textbox", name="Order: the candidate").input_value() == "3 2 1"
    window.check()

    page.get_by_label("Slot 1: candidate 3").fill(HOSTILE[0])
    page.get_by_label("Slot 2: candidate 2").fill("$\\frac{1}{2}$ <img src=x onerror=\"document.title='owned'\"> **b**")
    page.get_by_label("Question").fill("</div></style><script>document.title='owned'</script>")
    page.keyboard.press("Tab")
    window.settle()
    window.press("Judge")
    shaded.get_by_text("owned").first.wait_for()
    assert page.locator("[data-testid=stMain]").locator("img, script, .katex").count() == 0
    assert shaded.locator("img, script, a, foreignObject").count() == 0
    window.check()

    with page.expect_download() as got:
        page.get_by_role("button", name="Download as JSON").click()
    assert HOSTILE[0][:20] in Path(got.value.path()).read_text().replace("\\u003c", "<")
    link = page.url
    assert "judged=1" in link
    assert "edited=" in link
    page.goto("about:blank")
    page.goto(link)
    window.settle()
    page.get_by_role("heading", name="Decisions").wait_for()
    assert page.get_by_label("Slot 1: candidate 3").input_value() == HOSTILE[0]
    page.get_by_label("Save as a run named").fill("kept")
    page.keyboard.press("Tab")
    window.settle()
    window.press("Save")
    page.get_by_text("Saved. It can be chosen").wait_for()
    window.go("?run=kept")
    sync_api.expect(page.get_by_text("Judgements").first).to_be_visible()
    window.check()


def test_stop_keeps_what_was_judged_and_files_are_dropped_and_pasted(window: Visitor) -> None:
    page = window.page
    methods = ("dense", "naive", "true-mask", "isolated", "naive-linked", "null-edit", "pointwise")
    link = "&".join(f"live-methods={m}" for m in methods)
    page.goto(f"{window.root}/live?model=smollm2-135m&source=long-odd-one-out&candidates=8&judged=1&{link}")
    page.get_by_text(re.compile(r"^Judging with \S+, [2-5] of 7")).wait_for()
    stop = page.locator("[data-testid=stMain]").get_by_role("button", name="Stop")  # the head's is Streamlit's own
    stop.click()
    sync_api.expect(page.get_by_text(re.compile(r"Stopped after [2-6] of 7 methods"))).to_be_visible()
    sync_api.expect(page.get_by_role("heading", name="Decisions")).to_be_visible()
    window.settle()
    sync_api.expect(stop).to_have_count(0)

    problem = {"id": "one", "question": "Which is it?", "candidates": [{"text": "four"}, {"text": "five"}]}
    good = {"mimeType": "application/json", "buffer": json.dumps([problem]).encode(), "name": "good.json"}
    window.go("live?model=smollm2-135m&source=file")
    page.locator("input[type=file]").last.set_input_files([{**good, "name": "bad.json", "buffer": b"{"}])
    sync_api.expect(page.get_by_text("This file is not taken")).to_be_visible()
    page.locator("input[type=file]").last.set_input_files([good])
    sync_api.expect(page.get_by_label("Question", exact=True)).to_have_value("Which is it?")
    sync_api.expect(page.get_by_text("This file is not taken")).to_have_count(0)
    page.get_by_label("Slot 2: candidate 2").fill("six")
    page.keyboard.press("Tab")
    window.settle()
    page.get_by_role("button", name=re.compile("^Template: ")).click()
    pasted = page.locator("[data-testid=stPopoverBody]").get_by_label("Or paste it")
    for text, said in (
        ("header: no label", "This template is not taken"),
        ("name: mine\ninstruction: Go.", "Of a file: mine"),
    ):
        pasted.fill(text)
        page.keyboard.press("Control+Enter")
        sync_api.expect(page.get_by_text(said)).to_be_visible()
        sync_api.expect(page.get_by_label("Slot 2: candidate 2")).to_have_value("six")
    sync_api.expect(page.get_by_text("This template is not taken")).to_have_count(0)
    window.settle()
    window.check()


def test_a_head_is_chosen_in_the_table_or_in_the_heatmap_and_both_show_it(window: Visitor) -> None:
    page = window.page
    judged = "live?model=organism-unsafe&source=organism-max&live-methods=dense&live-methods=naive&judged=1"

    def head() -> tuple[str, str]:
        return tuple(page.get_by_label(n, exact=True).first.input_value() for n in ("Layer", "Head"))

    page.goto(f"{window.root}/{judged}")
    page.get_by_text("How far the candidates' keys and values").wait_for()
    window.settle()
    sync_api.expect(page.get_by_text("The logit lens has dense settle on slot")).to_be_visible()
    table = page.locator("[data-testid=stDataFrame]").nth(1)
    table.scroll_into_view_if_needed()
    seen = {head()}
    for row in (0, 3):
        table.locator(".dvn-scroller").click(position={"x": 15, "y": 52 + 35 * row})
        window.settle()
        window.framed(*map(int, head()))
        seen.add(head())
    assert len(seen) == 3
    box = window.heatmap().locator(".heatmaplayer image").first.bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.click(box["x"] + 5, box["y"] + 5)
    window.settle()
    eventually(head, ("0", "0"))
    window.framed(0, 0)
    window.check()
    page.get_by_text("Layer by layer", exact=True).click()
    window.settle()
    explorer = page.frame_locator("[data-testid=stIFrame]")
    assert explorer.locator("#head").input_value() == "0"
    explorer.locator("#top button").first.click()
    sync_api.expect(explorer.locator(".pane")).to_have_count(3)
    window.check()


def test_a_click_on_a_token_asks_for_its_row(window: Visitor) -> None:
    judged = "live?model=organism-unsafe&source=organism-max&live-methods=dense&live-methods=naive&judged=1"
    window.go(f"{judged}&row-method=dense")
    shaded = window.page.frame_locator(SHADED)
    shaded.locator("[data-token='5']").first.click()
    window.page.wait_for_url(re.compile("row-token=5"))
    assert shaded.locator("script").count() == 0
    window.go(judged)
    shaded.locator("[data-token='5']").last.click()
    window.page.get_by_text("That token is reused").wait_for()
    window.check()


@pytest.mark.parametrize("query", ["run=../../../etc", "run=/etc", "run=plain/../deep", "run=%00", "run="])
def test_a_name_that_is_no_run_opens_another(window: Visitor, query: str) -> None:
    window.go(f"?{query}")
    window.check()
    assert "etc" not in window.page.url
    sync_api.expect(window.page.get_by_text("content test").first).to_be_visible()
