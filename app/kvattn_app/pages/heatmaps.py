"""Layers by heads for a slot and a method, or the paired change between two; a click opens a head."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from kvattn import plots, stats
from kvattn.plots.clicks import clickable
from kvattn.report import headline
from kvattn.study.run_folder import Run, mass, picks
from kvattn_app import controls, head_view, inside_view, library, show, words

NOTHING = "nothing"


def page() -> None:
    """The page."""
    opened = controls.opened()
    query = controls.query(opened)
    row = st.columns([3, 3, 1.5, 2.5])
    names = library.ask(opened, picks.methods)
    with row[0]:
        method = controls.choose("Method", names, "method", index=controls.telling(names))
    with row[1]:
        base = controls.choose("Compared with", [NOTHING, *(m for m in names if m != method)], "base")
    slots = [str(s) for s in range(1, max(library.ask(opened, picks.size)["n"]) + 1)]
    with row[2]:
        slot = controls.choose("Slot", ["all", *slots], "slot", index=0 if len(slots) <= 6 else 1)
    with row[3]:
        sinks = controls.sinks(opened, query)
    values = _values(opened, query, method, base, sinks)
    if slot != "all":
        values = values[values["slot"] == int(slot)]
    if values.empty:
        show.empty("There is no mass to show for this choice: the two methods have no pairs in common.")
        return
    change = base != NOTHING
    sentence = (
        "How this method's slot mass differs from the other's, head by head; click on a cell to open that head."
        if change
        else "What share of its attention the deciding token pays each slot, head by head; click on a cell to open it."
    )
    show.explain(sentence, words.CHANGE if change else words.SLOT_MASS)
    layer, head = head_view.chosen(opened)
    fig = plots.slot_mass_grid(values, [values["method"].iloc[0]], change=change)
    if change:
        own, other = (_values(opened, query, m, NOTHING, sinks) for m in (method, base))
        show.headline(headline.heads(own, other, method, base))
    fig.update_layout(height=max(360, 130 + 14 * library.ask(opened, mass.shape)[1]))
    shown = plots.inert(values["method"].iloc[0], 40)
    fig.for_each_annotation(lambda a: a.update(visible=a.text != shown))  # it stands above
    if change:
        title = "slot mass over the other's" if base != "dense" else "slot mass over dense's"
        fig.update_layout(coloraxis_colorbar_title_text=title)
    key = show.short_key("heatmap", method, *(["against", base] if change else []), "slot", slot, "sinks", sinks)
    show.picked(clickable(fig, (layer, head)), key, values, lambda p: _choose(*map(int, p["customdata"][1:])), fig)
    if change:
        show.explain("Heads whose attention changes most; choose one to open it.", inside_view.MEANING)
        ranked = stats.ranked_heads(*(t if slot == "all" else t[t["slot"] == int(slot)] for t in (own, other)))
        names = {"base": base, "method": method}
        inside_view.table(ranked, show.short_key("ranked", method, base, slot, sinks), names, (layer, head), _choose)
    head_view.draw(opened, query, method, layer, head, sinks)


def _values(opened: Run, query: str, method: str, base: str, sinks: Any) -> pd.DataFrame:
    keys = ("method", "layer", "head")
    if base == NOTHING:
        table = library.ask(opened, Run.mass_means, query, (*keys, "name"))
        return stats.slot_values(table[table["method"] == method], "raw", sinks)
    changes: Any = library.ask(opened, mass.changes, query, keys, sinks)
    own, other = (changes[changes["method"] == m].drop(columns="method") for m in (method, base))
    if method == "dense":
        own = other.assign(value=0.0)
    if base == "dense":
        other = own.assign(value=0.0)
    both = own.merge(other, on=["layer", "head", "slot"], suffixes=("", "_base"))
    return both.assign(method=f"{method} against {base}", value=both["value"] - both["value_base"]).drop(
        columns="value_base"
    )


def _choose(layer: int, head: int) -> None:
    st.session_state["layer"], st.session_state["head"] = layer, head
