"""The explorer in a browser: what it draws is what the rows say, and nothing but its own script runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvattn.errors import KvattnError
from kvattn.plots.explorer import HEIGHT, Explorer
from kvattn.plots.text import Panel

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (kvattn[dev])")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
TOKENS = ["Which?\n", NASTY, " two", " three", " id:"]
SEGMENTS = [
    SimpleNamespace(role="question", slot=None, start=0, stop=1),
    SimpleNamespace(role="candidate", slot=0, start=1, stop=3),
    SimpleNamespace(role="candidate", slot=1, start=3, stop=4),
    SimpleNamespace(role="suffix", slot=None, start=4, stop=5),
]


def explorer() -> Explorer:
    """Three layers of two heads; under naive head 1 of layer 2 looks away from slot 1 to slot 2."""
    rows = np.full((3, 2, 5), 0.2)
    rows[1, 0] = [0.1, 0.5, 0.1, 0.2, 0.1]
    other = rows.copy()
    other[2, 1] = [0.2, 0.05, 0.05, 0.5, 0.2]
    kept = np.array([True, True, True, True, False])
    dense = Panel("dense: picks 1", TOKENS, rows, SEGMENTS, ~kept & kept)
    return Explorer((dense, Panel("naive: picks 2, dense 1", TOKENS, other, SEGMENTS, kept)))


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    with sync_api.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        shown = made.new_page(viewport={"width": 900, "height": 700})
        shown.troubles = []
        shown.on("pageerror", lambda e: shown.troubles.append(str(e)))
        shown.on("request", lambda r: shown.troubles.append(r.url) if r.url.startswith("http") else None)
        shown.set_content(explorer().page())
        yield shown
        made.close()


def slots(page: Any) -> list[list[float]]:
    return [[float(x) for x in re.findall(r"[-+\d.]+(?=%)", p.inner_text())] for p in page.locator(".pane p").all()]


def test_layer_head_and_difference_are_those_of_the_rows(page: Any) -> None:
    assert slots(page)[0] == [pytest.approx(x, abs=0.06) for x in (100 * (5 * 0.4 + 0.6) / 6, 20.0)]
    page.get_by_label("Layer").fill("2")
    page.get_by_label("Head").select_option("1")
    assert slots(page) == [[40.0, 20.0], [10.0, 50.0], [-30.0, 30.0]]
    shown = [float(t.get_attribute("title").split(": ")[1]) for t in page.locator(".pane").nth(2).locator("span").all()]
    assert shown == pytest.approx([0, -0.15, -0.15, 0.3, 0], abs=1e-4)
    assert page.locator(".pane").nth(1).locator("span.kept").count() == 4


def test_the_head_that_changes_most_is_named_first_and_a_cell_opens_its_head(page: Any) -> None:
    page.get_by_label("Layer").fill("0")
    page.locator("#top button").first.click()
    assert page.locator("#top button").first.inner_text().startswith("L2H1 slot ")
    assert page.locator("#at").inner_text() == "2 of 0 to 2"
    box = page.locator("#grid").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.25)
    assert slots(page)[0] == [60.0, 20.0]
    assert page.get_by_label("Head").input_value() == "0"


def test_play_goes_through_the_layers_until_it_is_stopped(page: Any) -> None:
    page.get_by_label("Layer").fill("0")
    page.get_by_role("button", name="Play").click()
    sync_api.expect(page.locator("#at")).to_have_text("2 of 0 to 2", timeout=20_000)
    page.get_by_role("button", name="Stop").click()
    assert page.get_by_role("button", name="Play").is_visible()


def test_it_is_seen_whole_in_the_cell_of_a_notebook(page: Any) -> None:
    small = explorer()
    panels = [replace(p, row=np.tile(p.row, (10, 5, 1))[:, :9]) for p in small.panels]
    cell = page.context.browser.new_page(viewport={"width": 830, "height": HEIGHT})
    cell.set_content(replace(small, panels=tuple(panels)).page())
    assert cell.locator("#top button").count() == 10
    assert cell.evaluate("[document.documentElement.scrollHeight, document.documentElement.scrollWidth]") == [
        HEIGHT,
        830,
    ]
    cell.close()


def test_hostile_text_is_text_and_nothing_is_fetched(page: Any) -> None:
    assert page.title() == "kvattn"
    assert page.locator("img").count() == 0
    assert page.locator(".pane span").nth(1).inner_text() == NASTY
    assert page.troubles == []
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.bad = 1'}))")
    assert page.evaluate("window.bad") is None
    page.troubles.clear()


def test_rows_of_another_shape_are_refused() -> None:
    panel = explorer().panels[0]
    with pytest.raises(KvattnError, match="an explorer takes"):
        Explorer((Panel("dense", panel.tokens, panel.row[0, 0], SEGMENTS, panel.kept),))
