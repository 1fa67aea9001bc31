"""Inside a judge: a table of heads that is linked with a heatmap, and what comes about in which layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
import streamlit as st

from kvattn import plots
from kvattn.report import headline
from kvattn_app import controls, live_run, show
from kvattn_app.live_run import Live

CUT = 10  # heads that are cut one at a time
HEADS = {
    "where": ("Head", None),
    "slot": ("Slot", None),
    "change": ("Change", "percent"),
    "mass_base": ("Attention, {base}", "percent"),
    "mass": ("Attention, {method}", "percent"),
    "norm_base": ("Value norm, {base}", "%.2f"),
    "norm": ("Value norm, {method}", "%.2f"),
    "written_base": ("Writes, {base}", "%+.3f"),
    "written": ("Writes, {method}", "%+.3f"),
    "cut": ("When cut", "%+.3f"),
}
MEANING = (
    "Sorted by how far the deciding token's attention to a candidate changes; **Slot** is the slot whose candidate "
    "gains or loses most, **Change** the difference of its two shares. A click on a heading sorts by another column, "
    "the magnifying glass searches (L12H3)."
)
MOVED = (
    "\n\n**Value norm**: length of attention x V x W_O from that candidate: what is moved, not only looked at. "
    "**Writes**: what the head adds straight to the score of the method's pick, less that of dense's pick (of the "
    "runner-up, where both pick one slot), in nats; what passes through later layers is not in it. **When cut**: how "
    "far that lead moves when the head brings the deciding token nothing."
)
LENS = (
    "**Logit lens**: the residual stream of the deciding token after each layer, put through the last norm and the "
    "output matrix, as if the model ended there; softmax over the slots' labels. Layer 0 is before the first. Middle "
    "layers were not trained to be read so: what counts is where a slot goes ahead for good."
)
DRIFT = (
    "Distance of a candidate's keys and values from those that dense computes at the same place, over dense's norm, "
    "mean over its tokens. Naive reuse has none in layer 0: what differs there is the position alone."
)


def table(found: pd.DataFrame, key: str, names: dict[str, str], at: tuple[int, int], pick: Callable) -> None:
    """The heads in a table; the row of the head that is open is chosen, and choosing a row opens its head.

    names: what stands for "base" and "method" in the headings
    at:    (layer, head) that is open; pick: told of another one
    """
    rows = list(zip(found["layer"], found["head"], strict=True))
    if st.session_state.get(f"{key}-open") != at:  # from elsewhere: another table, in which its row is chosen
        st.session_state[f"{key}-open"] = at
        st.session_state[f"{key}-turn"] = st.session_state.get(f"{key}-turn", 0) + 1
    name = f"{key}-{st.session_state[f'{key}-turn']}"
    shown = [c for c in HEADS if c in found and found[c].notna().any()]
    said = {c: HEADS[c][0].format(**names) for c in shown}
    columns = {said[c]: st.column_config.NumberColumn(said[c], format=HEADS[c][1]) for c in shown if HEADS[c][1]}
    show.table(
        found[shown].rename(columns=said),
        key=name,
        height=360,
        on_select=partial(_picked, key, name, rows, pick),
        selection_mode="single-row",
        selection_default={"selection": {"rows": [rows.index(at)] if at in rows else []}},
        column_config=columns,
    )
    show.exports(key, None, found)


def _picked(key: str, name: str, rows: list[tuple[int, int]], pick: Callable) -> None:
    if chosen := st.session_state[name]["selection"]["rows"]:
        st.session_state[f"{key}-open"] = layer, head = (int(x) for x in rows[chosen[0]])
        pick(layer, head)


def heads(live: Live, method: str, at: tuple[int, int], pick: Callable) -> None:
    """The heads of a live judgement, under a method beside dense."""
    show.explain("Heads whose attention changes most, and what they do with it.", MEANING + MOVED)
    cut = CUT if controls.switch(f"Cut the first {CUT}, one at a time", "cut") else 0
    if method == (base := live.methods[0]):
        show.empty("Choose a method beside dense to compare its heads.")
        return
    with st.spinner("Looking into the heads"):
        found = live_run.heads(live, method, cut)
    table(found, show.short_key("heads", method), {"base": base, "method": method}, at, pick)


def layers(live: Live, method: str) -> None:
    """In which layer the pick comes about, and how far the candidates' keys and values are from dense's."""
    st.subheader("In which layer", anchor=False)
    base = live.methods[0]
    with st.spinner("Looking into the layers"):
        read, drift = live_run.layers(live, method)
    if method != base:
        show.headline(headline.lens(read, method, base))
    show.explain("Which slot would win if the model ended after a layer.", LENS)
    drawn = read.rename(columns={"method": "panel", "probability": "value"})
    fig = plots.slots_by_layer(drawn, "probability over slots", shares=True)
    show.figure(fig, show.short_key("lens", method), read)
    if drift is not None:
        show.explain("How far the candidates' keys and values are from dense's.", DRIFT)
        long = drift.melt(["layer", "slot"], ["keys", "values"], "panel")
        fig = plots.slots_by_layer(long, "distance over dense's norm")
        show.figure(fig, show.short_key("drift", method), drift)
