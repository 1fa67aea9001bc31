"""Figures as files: HTML without a network, CSV of the numbers, and vector or pixel pictures through Chromium."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kvattn.errors import KvattnError
from kvattn.plots.theme import on_ground
from kvattn.text import csv

STATIC = ("svg", "pdf", "png")
CONFIG: dict[str, Any] = {"displaylogo": False, "responsive": True, "showTips": False}


def save(
    fig: go.Figure,
    stem: str | Path,
    formats: Sequence[str] = ("html", "svg", "pdf", "png"),
    data: pd.DataFrame | None = None,
    scale: float = 2.0,
) -> tuple[list[Path], str | None]:
    """Writes the figure as `stem` + "." + each format, and `data` as CSV. Returns the paths, and one line that says how
    to get the static formats where they could not be made (else None).

    HTML is always written; plotly.js goes once into the same folder, never to a network. Static formats need the
    package kaleido and a Chromium or Chrome (BROWSER_PATH, or on the PATH).

    scale: pixels per CSS pixel of PNG

    Raises KvattnError for a format that is not known.
    """
    _check(formats)
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [_with(stem, "html")]
    fig.write_html(written[0], include_plotlyjs="directory", config=CONFIG)
    if data is not None:
        written.append(_with(stem, "csv"))
        written[-1].write_text(csv(data), encoding="utf-8", errors="replace")
    wanted = [f for f in STATIC if f in formats]
    trouble = _write_static(fig, stem, wanted, scale) if wanted else None
    if trouble is None:
        written += [_with(stem, f) for f in wanted]
    return written, trouble


def render(fig: go.Figure, kind: str, scale: float = 2.0) -> bytes:
    """The figure as one file: "html" (with plotly.js inside, so that it needs nothing else), "svg", "pdf" or "png".

    Raises KvattnError where a static format cannot be made, saying how to get it.
    """
    if kind == "html":
        return on_ground(fig).to_html(include_plotlyjs=True, config=CONFIG).encode()
    return pictures(fig, [kind], scale)[kind]


def pictures(fig: go.Figure, kinds: Sequence[str], scale: float = 2.0) -> dict[str, bytes]:
    """The figure in several static formats, by format; Chromium starts once for all. Raises KvattnError as `render`."""
    _check(kinds)
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "figure"
        trouble = _write_static(fig, stem, kinds, scale)
        if trouble is not None:
            raise KvattnError(trouble)
        return {kind: _with(stem, kind).read_bytes() for kind in kinds}


def why_no_static(formats: Sequence[str] = STATIC) -> str | None:
    """How to get static formats where they cannot be made at all, else None."""
    try:
        import kaleido  # noqa: F401

        browser = find_browser()
    except ImportError:
        return _how(formats, "kaleido is not installed", 'pip install "kvattn[export]"')
    return None if browser else _how(formats, "no Chromium was found", "install chromium or set BROWSER_PATH to one")


def find_browser() -> str | None:
    """The Chromium or Chrome that static pictures are made with: BROWSER_PATH, else one on the PATH, else None.

    Raises ImportError where kaleido is not installed.
    """
    from choreographer.browsers.chromium import Chromium

    given = os.environ.get("BROWSER_PATH")
    if given:
        return given if Path(given).is_file() else None
    return Chromium.find_browser(skip_local=False)


def _how(formats: Sequence[str], reason: str, remedy: str) -> str:
    return f"no {', '.join(formats)}: {reason}; {remedy}, and save again"


def _check(formats: Sequence[str]) -> None:
    unknown = [f for f in formats if f not in ("html", *STATIC)]
    if unknown:
        raise KvattnError(f"unknown figure format {unknown[0]!r}; known: html, {', '.join(STATIC)}")


def _write_static(fig: go.Figure, stem: Path, formats: Sequence[str], scale: float) -> str | None:
    trouble = why_no_static(formats)
    if trouble is not None:
        return trouble
    import kaleido
    from kaleido.errors import BrowserClosedError, BrowserFailedError, KaleidoError

    browser = find_browser()
    paper = on_ground(fig).update_layout(paper_bgcolor="#ffffff")
    layout: Any = fig.layout
    size = {"width": layout.width or 900, "height": layout.height or 450}
    jobs = [
        {"fig": paper, "path": _with(stem, f), "opts": {"format": f, "scale": scale if f == "png" else 1, **size}}
        for f in formats
    ]
    try:
        # MathJax would come from a network, and TeX in model text is to stay inert.
        kopts = {"path": browser, "mathjax": False}
        kaleido.write_fig_from_object_sync(jobs, kopts=kopts, cancel_on_error=True)
    except (KaleidoError, BrowserFailedError, BrowserClosedError, TimeoutError, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        return _how(formats, f"{browser} failed ({line})", "set BROWSER_PATH to a Chromium that starts")
    if "svg" in formats:
        path = _with(stem, "svg")
        path.write_bytes(steady(path.read_bytes()))
    return None


def steady(svg: bytes) -> bytes:
    """The picture with names for its parts that follow from what it shows: plotly.js draws those of a figure and its
    traces by chance, and the same figure would not be the same file twice."""
    drawn = list(dict.fromkeys(re.findall(rb'\b(?:defs-|trace|[gp][0-9a-f]{6}-)([0-9a-f]{6})"', svg)))
    if not drawn:
        return svg
    named = re.compile(rb"(?<=[a-z-])(?:" + b"|".join(drawn) + rb")")
    first = int.from_bytes(hashlib.sha256(named.sub(b"", svg)).digest()[:3], "big")
    names = {name: b"%06x" % ((first + i) % 16**6) for i, name in enumerate(drawn)}
    return named.sub(lambda found: names[found[0]], svg)


def _with(stem: Path, suffix: str) -> Path:
    # Not with_suffix: a stem may hold a dot, as in "smollm2.5-jcr".
    return stem.with_name(f"{stem.name}.{suffix}")
