"""How pages show things: figures with their meaning and their exports, text that stays text, and empty states."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from kvattn import __version__
from kvattn.plots import export, paper
from kvattn.plots.text import ShadedText
from kvattn.plots.theme import on_page
from kvattn.study.run_folder import read_manifest
from kvattn.text import csv
from kvattn_app import library

WIDTHS = {"column": "one column (zip)", "double": "both columns (zip)", "slide": "a slide (zip)"}
CONFIG = {"displaylogo": False, "displayModeBar": False, "showTips": False}
MOST_ROWS = 20  # of a table that is not scrolled
MIME = {
    "html": "text/html",
    "csv": "text/csv",
    "svg": "image/svg+xml",
    "pdf": "application/pdf",
    "png": "image/png",
    "json": "application/json",
    "zip": "application/zip",
}


def dark() -> bool:
    """Whether the page is a dark one."""
    return st.context.theme.type == "dark"


def plain(text: object, limit: int = 200) -> str:
    """Text for places that read Markdown (labels, headings), where it is to be shown as it is."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    shown = shown if len(shown) <= limit else shown[: limit - 1] + "…"
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:&^=\"'/@])", r"\\\1", shown)


def verbatim(text: object) -> None:
    """A text that somebody else wrote, character for character."""
    st.code(str(text), language=None, wrap_lines=True)


def headline(*sentences: str) -> None:
    """What a page shows, computed from its data; nothing where there is nothing to say."""
    if said := " ".join(filter(None, sentences)):
        st.markdown(plain(said, 900))


def explain(sentence: str, definition: str) -> None:
    """One sentence about what is shown, its definition a click away. Both are our own text."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(sentence, width="stretch")
        with st.popover("Definition", type="tertiary"):
            st.markdown(definition)


def figure(
    fig: go.Figure,
    key: str,
    data: pd.DataFrame | None = None,
    on_select: Callable[[], None] | None = None,
    alt: str = "",
    file: str | None = None,
    exported: go.Figure | None = None,
) -> Any:
    """A figure in the page's colours, with its exports beneath; returns the selection where one was asked for.

    file:     the name of exported files, where it is another than the key
    exported: what is exported, where it is another figure
    """
    options: dict[str, Any] = {"theme": None, "config": CONFIG, "alt": alt or key.replace("-", " ")}
    if on_select is not None:
        options |= {"on_select": on_select, "selection_mode": "points"}
    event = st.plotly_chart(on_page(fig, dark()), key=f"figure-{key}", **options)
    exports(key, exported or fig, data, file)
    return event


def picked(
    fig: go.Figure,
    key: str,
    data: pd.DataFrame,
    pick: Callable[[dict[str, Any]], None],
    exported: go.Figure | None = None,
) -> None:
    """A figure in which a click on a point is told to `pick`; the same point can be clicked again."""
    turn = f"{key}-turn"
    name = f"{key}-{st.session_state.setdefault(turn, 0)}"

    def clicked() -> None:
        if points := st.session_state[f"figure-{name}"]["selection"]["points"]:
            pick(points[0])
            st.session_state[turn] += 1  # a new key: nothing is selected

    figure(fig, name, data, clicked, file=key, exported=exported)


def exports(
    key: str,
    fig: go.Figure | None,
    data: pd.DataFrame | None,
    file: str | None = None,
    text: ShadedText | None = None,
) -> None:
    """Download buttons: the figure as HTML, SVG, PDF, PNG, its numbers as CSV, and shaded text as SVG; made when they
    are clicked."""
    with st.popover("Download", type="tertiary", icon=":material/download:", key=f"export-{key}"):
        files: list[tuple[str, Callable[[], bytes]]] = []
        if fig is not None:
            files += [(f, partial(export.render, fig, f)) for f in ("html", *export.STATIC)]
            if trouble := export.why_no_static():
                files = files[:1]
                st.caption(plain(trouble, 400))
            name, words = _file(file or key), caption(file or key)
            for size, label in WIDTHS.items() if not trouble else ():
                make = partial(paper.bundle, fig, data, size, name, words)
                download(f"For a paper: {label}", make, f"{name}-{size}.zip", f"{key}-{size}")
        if text is not None:
            download("Text as SVG", lambda: text.svg().encode(), f"{file or key}-text.svg", f"{key}-text")
        if data is not None:
            files.append(("csv", partial(to_csv, data)))
        for suffix, make in files:
            download(f"{suffix.upper()}", make, f"{_file(file or key)}.{suffix}", f"{key}-{suffix}")


def _file(key: str) -> str:
    """The name of a file: the run that the page is about, and what is shown of it."""
    return short_key(*_run(), key)


def _run() -> list[str]:
    """The name of the run that this page is about, if it is about one."""
    return st.session_state.get("link", {}).get("run", [])


def caption(key: str) -> str:
    """What a figure shows, and of which run: model, data, numbers of questions and judgements, version."""
    path = library.runs().get("".join(_run()))
    said = f"kvattn {__version__}, {key.replace('-', ' ')}."
    if path is None:
        return said
    manifest = read_manifest(path)
    model, data = manifest.get("model") or {}, manifest.get("data") or {}
    return (
        f"{said} Run {path.name}: {model.get('id') or model.get('name')}, {data.get('source')}, "
        f"{data.get('questions')} questions, orders {manifest.get('orders')}, readout {manifest.get('readout')}; "
        f"judged with kvattn {manifest.get('kvattn')}."
    )


def download(label: str, data: Any, file: str, key: str) -> None:
    """A download button that does not run the page again."""
    mime = MIME[file.rsplit(".", 1)[-1]]
    st.download_button(label, data, file, mime, key=f"download-{key}", on_click="ignore", width="stretch")


def to_csv(data: pd.DataFrame) -> bytes:
    """The table as CSV. A cell that a spreadsheet would run as a formula gets an apostrophe in front."""
    return csv(data).encode("utf-8", "replace")


def empty(sentence: str, command: str | None = None) -> None:
    """Says why there is nothing to show, and which command makes it."""
    st.info(sentence, icon=":material/info:")
    if command is not None:
        st.code(command, language="bash")


def trouble(error: Exception, consequence: str = "This cannot be shown.") -> None:
    """An error in one line, inert, under what comes of it."""
    st.error(consequence, icon=":material/error:")
    verbatim(error)


def table(data: pd.DataFrame, **more: Any) -> Any:
    """A table as wide as the page, whole where it is not long; returns the selection where one was asked for."""
    height = "content" if len(data) <= MOST_ROWS else "auto"
    return st.dataframe(data, **{"hide_index": True, "placeholder": "", "width": "stretch", "height": height, **more})


def facts(rows: dict[str, object]) -> None:
    """Names and values, the values inert."""
    pairs = pd.DataFrame({"": list(rows), "value": [str(v) for v in rows.values()]})
    widths = {"": st.column_config.Column(width=150), "value": st.column_config.Column(width=750)}
    table(pairs, column_config=widths)


def short_key(*parts: object) -> str:
    """A file name and widget key for something with an arbitrary name."""
    joined = "-".join(str(p) for p in parts)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", joined).strip("-")[:60]
    return slug if slug == joined else f"{slug}-{hashlib.sha256(joined.encode()).hexdigest()[:6]}"


def share_columns(names: Iterable[str]) -> dict[str, Any]:
    """Table columns that hold shares."""
    return {n: st.column_config.NumberColumn(n, format="percent") for n in names}
