"""The prompt shaded token by token."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from wcag import contrast

from kvattn.errors import KvattnError
from kvattn.judge.judge import load
from kvattn.plots.text import Panel, ShadedText
from kvattn.plots.theme import GROUNDS
from kvattn.questions import load as questions

SVG = "{http://www.w3.org/2000/svg}"


def shaded(tokens: list[str], row: list[float], kept: list[bool] | None = None, panels: int = 1) -> ShadedText:
    """Panels of tokens, of which all but the first are slot 2's candidate."""
    segments = [SimpleNamespace(role="prefix", slot=None, start=0, stop=1)]
    segments += [SimpleNamespace(role="candidate", slot=1, start=1, stop=len(tokens))]
    panel = Panel("naive: picks 2", tokens, np.array(row), segments, np.array(kept or [False] * len(tokens)))
    return ShadedText((panel,) * panels)


def texts(picture: ShadedText) -> list[ElementTree.Element]:
    """The tokens' pieces, without heading and note."""
    return [t for t in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text") if "textLength" in t.attrib]


def test_every_token_stands_there_and_what_is_reused_is_underlined():
    picture = shaded(["a", " b", " c\n", "d"], [0.5, 0.1, 0.2, 0.2], [True, False, True, True])
    pieces = texts(picture)
    assert [t.text for t in pieces] == ["a", " b", " c", "d"]
    assert [t.get("class") for t in pieces] == ["n", "c", "c", "c"]
    lines = [float(t.get("y", 0)) for t in pieces]
    assert lines[0] == lines[1] == lines[2] < lines[3]
    assert len(list(ElementTree.fromstring(picture.svg()).iter(f"{SVG}path"))) == 3


def test_colour_grows_with_the_share_and_is_full_at_the_scale_of_all_panels():
    picture = shaded(["a", "b", "c", "d"], [0.9, 0.0, 0.05, 0.1])
    marks = [float(r.get("fill-opacity", 1)) for r in ElementTree.fromstring(picture.svg()).iter(f"{SVG}rect")][1:]
    assert len(marks) == 3  # of the share 0 there is none
    assert marks[0] == 0.4  # what is no candidate is full, however large its share
    assert 0 < marks[1] < marks[2] == 0.55


@pytest.mark.parametrize(
    ("page", "ink", "soft"), [(GROUNDS[False], "#20242c", "#4b5360"), (GROUNDS[True], "#e6e9ef", "#b3bac6")]
)
def test_words_are_read_on_the_fullest_shade(page: str, ink: str, soft: str):
    picture = shaded(["a", "b", "c"], [0.5, 0.5, 0.5])
    panel = picture.panels[0]
    differences = [replace(panel, row=sign * panel.row, signed=True) for sign in (1, -1)]
    for p in (panel, *differences):
        svg = ElementTree.fromstring(ShadedText((p,)).svg(page != "#ffffff"))
        assert all(colour in svg[0].text for colour in (ink, soft, page[:4]))
        boxes = [r for r in svg.iter(f"{SVG}rect") if "fill" in r.attrib]
        for box, words in zip(boxes, (soft, ink, ink), strict=True):
            share, both = float(box.get("fill-opacity", 1)), (box.get("fill", ""), page)
            shade = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in both)
            mixed = (round(share * a + (1 - share) * b) for a, b in zip(*shade, strict=True))
            assert contrast(words, "#" + "".join(f"{v:02x}" for v in mixed)) >= 4.5


@pytest.mark.parametrize(
    "token", ["</text><script>alert(1)</script>", "\u202eevil", "\x1b[31m", "&amp;", "]]>", "\x00"]
)
def test_hostile_text_is_text(token):
    picture = shaded(["a", token], [0.5, 0.5])
    tree = ElementTree.fromstring(picture.svg())
    assert {x.tag.removeprefix(SVG) for x in tree.iter()} <= {"svg", "style", "rect", "text", "path", "title"}
    assert "\u202e" not in picture.svg()
    assert "\x1b" not in picture.svg()


def test_long_and_wide_text_is_broken_and_none_is_lost():
    token = "漢字かな" * 40 + "x" * 150
    pieces = texts(shaded(["a", " word" * 30, token], [0.2, 0.4, 0.4]))
    assert "".join(t.text or "" for t in pieces) == "a" + " word" * 30 + token
    ends = [float(t.get("x", 0)) + float(t.get("textLength", 0)) for t in pieces]
    assert max(ends) <= 8 + 100 * 7.2 + 0.1
    pair = texts(shaded(["a", token], [0.5, 0.5], panels=2))
    left, right = pair[: len(pair) // 2], pair[len(pair) // 2 :]
    assert max(float(t.get("x", 0)) + float(t.get("textLength", 0)) for t in left) < float(right[0].get("x", 0))


def test_it_is_saved_as_a_picture_or_a_page_and_nothing_else(tmp_path: Path):
    picture = shaded(["a", "b"], [0.5, 0.5])
    assert picture.save(tmp_path / "x.svg").read_text().startswith("<svg")
    assert picture.save(tmp_path / "x.html").read_text().startswith("<!doctype html>")
    with pytest.raises(KvattnError, match=r"\.svg or \.html"):
        picture.save(tmp_path / "x.png")
    with pytest.raises(KvattnError, match="2 tokens, a row of 1"):
        Panel("", ["a", "b"], np.ones(1), [], np.ones(2))


def test_a_comparison_shows_what_flips():
    judge = load("organism-unsafe")
    prompts = questions("organism-max", 12, 3)
    results = (judge.compare(p, methods=["dense", "naive"]) for p in prompts)
    result = next(r for r in results if len({d.slot for d in r.decisions}) == 2)
    dense, naive = (d.slot for d in result.decisions)
    assert f"naive: picks {naive + 1}" in repr(result)
    assert f", dense {dense + 1}" in repr(result)
    assert repr(result).count(", dense") == 1  # dense itself flips nothing
    page = result._repr_html_()
    (image,) = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', page)
    assert base64.b64decode(image[0]).decode() == result.text("dense", "naive").svg()
    assert "dense: picks" in image[1]
    assert "naive: picks" in image[1]
    assert "<svg" not in page  # a notebook that was not run here shows an SVG's words without their places
    layout = result.runs[1].plan.layout
    assert [len(p.tokens) for p in result.text().panels] == [len(layout)] * 2
    assert result.text("naive").panels[0].kept.sum() == int((result.runs[1].plan.depth == 0).sum())
    with pytest.raises(KvattnError, match="true-mask"):
        result.text("true-mask")
    one = result.text("dense", "naive", difference=True, layer=1, head=0).panels
    rows = [result.row[m][1, 0].numpy() for m in ("dense", "naive")]
    for panel, row in zip(one, (*rows, rows[1] - rows[0]), strict=True):
        np.testing.assert_array_equal(panel.row, row)
    with pytest.raises(KvattnError, match="no layer 99: the judge has layers 0 to"):
        result.text("naive", layer=99)


def test_a_difference_says_what_each_token_gains_and_loses():
    base = shaded(["a", "b", "c"], [0.5, 0.3, 0.2]).panels[0]
    other = Panel("true-mask: picks 1", base.tokens, np.array([0.5, 0.1, 0.3]), base.segments, base.kept)
    change = base.less(other)
    assert change.title == "naive less true-mask"
    np.testing.assert_allclose(change.row, [0, 0.2, -0.1])
    np.testing.assert_allclose(list(change.slots().values()), [0.1])
    tree = ElementTree.fromstring(ShadedText((other, base, change)).svg())
    colours = [r.get("fill") for r in tree.iter(f"{SVG}rect")][-2:]
    assert colours == ["#d9761a", "#4a8fc2"]  # more, less
    assert "slots: +10.0%" in [t.text for t in tree.iter(f"{SVG}text")]
    titles = [t.text for t in tree.iter(f"{SVG}title")]
    assert titles[-1] == "token 2: -0.1"
    with pytest.raises(KvattnError, match="other tokens"):
        base.less(shaded(["a", "b", "d"], [0.5, 0.3, 0.2]).panels[0])
