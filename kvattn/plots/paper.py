"""Figures at the size in which a paper prints them, with what belongs beside them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kvattn import __version__
from kvattn.errors import unknown
from kvattn.plots import export
from kvattn.text import csv

SIZES = {"column": (3.35, 8.0), "double": (6.9, 8.0), "slide": (10.0, 14.0)}
"""By name, the width in inches and the size of type in points: a column and the full width of a two-column paper (ACL's
are 3.03 to 3.35 and 6.3 to 6.9 inches), and a slide."""

BIBTEX = f"""@software{{kvattn,
  title = {{kvattn: does reusing {{KV}} caches change what an {{LLM}} judge decides?}},
  author = {{{{kvattn contributors}}}},
  version = {{{__version__}}}
}}

@inproceedings{{liang-etal-2026-kv,
  title = {{When {{KV}} Cache Reuse Fails in Multi-Agent Systems: Cross-Candidate Interaction
    is Crucial for {{LLM}} Judges}},
  author = {{Liang, Sichu and Wang, Zhenglin and Chu, Jiajia and Xia, Pengfei and Zang, Hui and Zhou, Deyu}},
  booktitle = {{Proceedings of the 64th Annual Meeting of the Association for Computational Linguistics}},
  year = {{2026}},
  pages = {{7205--7230}},
  url = {{https://aclanthology.org/2026.acl-long.327/}}
}}
"""

_PX = 96.0  # CSS pixels an inch
_WHITE = 18.0  # pixels that kaleido leaves white beside a figure in a PDF, which it makes smaller by as much
_BASE = 13.0  # type of a figure on a screen, in CSS pixels
_SPREAD = 1 / 10  # how far headings and notes may be from the size of type
_TALLEST, _FLATTEST = 1.2, 0.6  # height over width


def fit(fig: go.Figure, size: str) -> go.Figure:
    """The figure as wide as a column, a page or a slide, its type 7 to 9 points there (12 to 16 on a slide), its legend
    below where it would take the width. Raises KvattnError for a size that is not in `SIZES`."""
    if size not in SIZES:
        raise unknown("size of a figure", size, SIZES)
    inches, points = SIZES[size]
    width = inches * _PX
    type_px = points / 72 * _PX * width / (width - _WHITE)
    out = go.Figure(fig)
    layout: Any = out.layout
    base = layout.font.size or _BASE
    shape = (layout.height or 450) / (layout.width or 900)
    factor = type_px / base
    out.update_layout(_fonts(out.to_plotly_json()["layout"], factor, type_px))
    traces: Any = out.data
    for trace in traces:
        trace.update(_fonts(trace.to_plotly_json(), factor, type_px))
        if isinstance(size_ := trace.to_plotly_json().get("marker", {}).get("size"), int | float):
            trace.update(marker_size=size_ * factor * 0.8)
    narrow = width < 500
    legend = layout.showlegend is not False and [t.name for t in traces if t.name and t.showlegend is not False]
    rows = -(-len(legend) // 3) if narrow and legend else 0
    out.update_layout(
        width=width,
        height=width * min(max(shape, _FLATTEST if narrow else 0.0), _TALLEST),
        font_size=type_px,
        margin={"l": 45, "r": 10, "t": max(24, factor * (layout.margin.t or 0)), "b": 40 + rows * 1.6 * type_px},
    )
    if rows:
        below = {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"}
        out.update_layout(legend=below)
    return out


def bundle(fig: go.Figure, data: pd.DataFrame | None, size: str, name: str, caption: str) -> bytes:
    """A zip archive: the figure as PDF and SVG at a size, its numbers as CSV, its caption, and BibTeX entries.

    Raises KvattnError where static pictures cannot be made, saying how to get them.
    """
    drawn = export.pictures(fit(fig, size), ("pdf", "svg"))
    files: dict[str, bytes] = {f"{name}-{size}.{kind}": picture for kind, picture in drawn.items()}
    if data is not None:
        files[f"{name}.csv"] = csv(data).encode("utf-8", "replace")
    files["caption.txt"] = f"{caption}\n".encode("utf-8", "replace")
    files["references.bib"] = BIBTEX.encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(zipfile.ZipInfo(file), content)  # without a time: equal content is an equal file
    return made.getvalue()


def _fonts(part: Mapping[str, Any], factor: float, type_px: float) -> dict[str, Any]:
    """The explicit sizes of fonts within, scaled, and kept near the size of type."""
    found: dict[str, Any] = {}
    for key, value in part.items():
        if key.endswith("font") and isinstance(value, Mapping) and isinstance(value.get("size"), int | float):
            least, most = type_px * (1 - _SPREAD), type_px * (1 + _SPREAD)
            found[key] = {"size": min(max(value["size"] * factor, least), most)}
        elif isinstance(value, Mapping) and (inner := _fonts(value, factor, type_px)):
            found[key] = inner
        elif key == "annotations":
            found[key] = [dict(a) | _fonts(a, factor, type_px) for a in value]
    return found
