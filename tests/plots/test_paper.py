"""Figures at the size of a paper: measured in the PDF that comes out."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pypdf
import pytest
from pdf_type import type_sizes

from kvattn import plots
from kvattn.errors import KvattnError
from kvattn.plots import export, paper

pytestmark = pytest.mark.skipif(export.why_no_static() is not None, reason="no Chromium to make static figures with")


@pytest.fixture
def one_browser() -> Iterator[None]:
    """A Chromium that draws all that is drawn meanwhile."""
    import kaleido

    kaleido.start_sync_server(path=export.find_browser(), mathjax=False)
    yield
    kaleido.stop_sync_server()


def figures() -> dict[str, go.Figure]:
    """Small examples of several views."""
    slots: Any = pd.DataFrame(
        [(m, s, 0.1 * s, 0.05 * s, 0.2 * s, 9) for m in ("dense", "naive", "true-mask") for s in range(1, 5)],
        columns=["method", "slot", "value", "low", "high", "n"],
    )
    heads: Any = pd.DataFrame(
        [
            ("naive", s, layer, head, 0.1 * (s + layer - head))
            for s in (1, 2)
            for layer in range(6)
            for head in range(4)
        ],
        columns=["method", "slot", "layer", "head", "value"],
    )
    same: Any = pd.DataFrame(
        {"method": ["null-edit", "true-mask", "naive"], "jcr": [0.97, 0.4, 0.3], "low": [0.9, 0.3, 0.2],
         "high": [1.0, 0.5, 0.4], "chance": [0.25] * 3}
    )  # fmt: skip
    picks: Any = slots.assign(share=slots["value"] / slots.groupby("method")["value"].transform("sum"))
    return {
        "dilution": plots.dilution_by_slot(slots, "raw", "kept", ["dense", "naive", "true-mask"]),
        "heatmap": plots.slot_mass_grid(heads, ["naive"], change=True),
        "ladder": plots.ladder(same, ["null-edit", "true-mask", "naive"]),
        "slots": plots.slot_histogram(picks, ["dense", "naive"]),
    }


@pytest.mark.usefixtures("one_browser")
@pytest.mark.filterwarnings("ignore:The kopts argument is ignored")
def test_type_is_7_to_9_points_at_the_width_of_a_paper() -> None:
    for size, inches in (("column", 3.35), ("double", 6.9)):
        for name, fig in figures().items():
            page = pypdf.PdfReader(io.BytesIO(export.render(paper.fit(fig, size), "pdf"))).pages[0]
            assert float(page.mediabox.width) / 72 == pytest.approx(inches, abs=0.05), name
            sizes = type_sizes(page)
            assert len(sizes) > 4, name
            assert 7 <= min(sizes) <= max(sizes) <= 9, (size, name, sorted(set(sizes)))


def test_a_figure_on_a_screen_is_left_as_it_is() -> None:
    fig = figures()["dilution"]
    before = fig.to_json()
    paper.fit(fig, "column")
    assert fig.to_json() == before
    with pytest.raises(KvattnError, match="column"):
        paper.fit(fig, "poster")


def test_a_bundle_holds_the_figure_its_numbers_its_caption_and_whom_to_cite() -> None:
    data = pd.DataFrame({"method": ["=cmd()"], "value": [0.5]})
    made = paper.bundle(figures()["ladder"], data, "column", "demo-ladder", "Run demo: 12 questions.")
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        names = ["demo-ladder-column.pdf", "demo-ladder-column.svg", "demo-ladder.csv", "caption.txt", "references.bib"]
        assert archive.namelist() == names
        assert archive.read("demo-ladder-column.pdf").startswith(b"%PDF")
        assert b"'=cmd()" in archive.read("demo-ladder.csv")
        assert archive.read("caption.txt") == b"Run demo: 12 questions.\n"
        assert b"liang-etal-2026-kv" in archive.read("references.bib")
