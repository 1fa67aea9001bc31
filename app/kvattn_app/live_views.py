"""What a live judgement shows: decisions, the row over the prompt, heads, the influence graph, the block matrix."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from kvattn import methods as zoo
from kvattn import plots
from kvattn.decision import MASS_FLOOR, Decision
from kvattn.plots.clicks import clickable
from kvattn.plots.explorer import HEIGHT
from kvattn.study.decisions_file import slot_mass
from kvattn_app import controls, inside_view, jobs, live_run, show, token_click, words
from kvattn_app.live_run import Live

ROWS = {"text": "Over the text", "play": "Layer by layer", "bars": "As bars"}
HEADS = {"mean": "All heads", "top": "The 10 that change most", "layer": "One layer", "one": "One head"}
TOP = 10
DECIDES = "the deciding one"


def result(live: Live, before: Live | None) -> None:
    """All sections."""
    _decisions(live)
    _orders(live)
    if before is not None:
        _moved(before, live)
    method = _rows(live)
    left, right = st.columns([5, 4])
    with left:
        _heads(live)
    with right:
        if live.prompt.n > 1:
            inside_view.heads(live, method, _open(live), _choose)
    left, right = st.columns([3, 2])
    with left:
        inside_view.layers(live, method)
    with right:
        influence(live, method)
    blocks(live, method)


def _decisions(live: Live) -> None:
    st.subheader("Decisions", anchor=False)
    show.explain(
        "What each method picks, and how it spreads its preference and its attention over the slots.",
        "**Distribution over slots**: softmax of the readout's scores. **Margin**: best score less second best. "
        "**Coverage**: probability on the labels (or on yes and no). **Token-layers**: what was computed, as a share "
        "of what dense computes. **Candidates kept**: the share of the candidates' tokens whose KV was reused.\n\n"
        f"{words.SLOT_MASS}",
    )
    table = live.table()
    shares = ["coverage", "token-layers", "candidates kept", *(c for c in table.columns if c.startswith("slot "))]
    columns = show.share_columns(shares) | {"margin": st.column_config.NumberColumn(format="%.3f")}
    show.table(table, column_config=columns)
    idle = [d.method for d in live.decisions if zoo.get(d.method).learns and not d.cost.candidate_tokens_kept]
    if idle:
        st.warning(
            f"{show.plain(', '.join(idle))} learned nothing before, so nothing was reused: this is dense. In a run, "
            "held-out questions or those before it teach it.",
            icon=":material/warning:",
        )
    show.figure(plots.comparison(live.decisions), "comparison", mass_table(live))


def verdicts(live: Live) -> None:
    """What each method picks, a badge each."""
    st.markdown(" ".join(_verdict(live, d) for d in live.decisions))


def _verdict(live: Live, d: Decision) -> str:
    """A badge: what a method picks, and whether dense picks the same."""
    picked = "none" if d.slot is None else f"slot {d.slot + 1}"
    right = {True: ", right", False: ", wrong"}.get(d.correct, "")  # type: ignore[arg-type]
    colour = "gray" if d is live.decisions[0] else "red" if live.flips(d) else "green"
    return f":{colour}-badge[{show.plain(d.method, 40)}: {picked}{right}{' FLIP' if colour == 'red' else ''}]"


def _orders(live: Live) -> None:
    """Every order of the problem, judged while its switch is on."""
    if not controls.switch("In every order", "every-order"):
        return
    what = (live.who, live.prompt, tuple(live.methods))
    held, table = st.session_state.get("live-orders", (None, None))
    if held != what:
        if not jobs.running(f"orders-{id(live)}"):
            jobs.start(f"orders-{id(live)}", partial(live_run.orders, live))
        table = jobs.wait(f"orders-{id(live)}")
        st.session_state["live-orders"] = (what, table)
    if table is None:
        show.empty("Stopped before an order was judged; the switch begins anew.")
        return
    show.explain(
        "The same candidates in other orders: a judge that reads picks the same one.",
        "All orders of up to four candidates, the rotations of more.",
    )
    show.table(table, height=300)
    show.exports("orders", None, table)


def mass_table(live: Live) -> pd.DataFrame:
    """The numbers of the comparison: method, slot, candidate, probability, mass."""
    rows = []
    for d in live.decisions:
        mass = slot_mass(d) or [None] * len(d.order)
        for s, candidate in enumerate(d.order):
            name = live.prompt.verdicts(live.who.readout)[candidate].id
            rows.append((d.method, s + 1, name, float(d.distribution[s]), mass[s]))
    return pd.DataFrame(rows, columns=["method", "slot", "candidate", "probability", "mass"])


def _moved(before: Live, live: Live) -> None:
    table = live_run.moved(before, live)
    if table is None or table.empty or before.prompt.order == live.prompt.order:
        return
    st.subheader("What moved", anchor=False)
    orders = [" ".join(str(i + 1) for i in x.prompt.order) for x in (before, live)]
    show.explain(
        f"The same candidates in the order {orders[0]} before and {orders[1]} now: picks, and mass by candidate.",
        "A judge that reads its candidates keeps its pick when two of them change places. Mass is the mean over layers "
        "and heads of what falls on the candidate's own tokens.",
    )
    shares = [c for c in table.columns if c.endswith((" before", " now")) and not c.startswith("pick")]
    show.table(table, column_config=show.share_columns(shares))


def _open(live: Live) -> tuple[int, int]:
    """The head that the widgets of the row say."""
    layers, heads = live.rows[live.methods[0]].shape[:2]
    return controls.number_held("row-layer", layers, layers // 2), controls.number_held("row-head", heads)


def _choose(layer: int, head: int) -> None:
    """Opens a head: the row is drawn of it."""
    st.session_state["row-layer"], st.session_state["row-head"], st.session_state["heads"] = layer, head, "one"


def _rows(live: Live) -> str:
    st.subheader("The decision row over the prompt", anchor=False)
    row = st.columns([2, 3, 3], vertical_alignment="bottom")
    with row[0]:
        method = controls.choose("Method", live.methods, "row-method", index=min(1, len(live.methods) - 1))
    with row[1]:
        kind = controls.named("Drawn", ROWS, "drawn")
    base, plan = live.methods[0], live.plan(method)
    tokens = live.comparison.tokens
    computed = {str(i): f"{i} {tokens(method)[i]!r}" for i in np.flatnonzero(plan.depth.numpy() == plan.layers)}
    asked = [i for i in computed if int(i) not in plan.layout.decisions] if kind != "play" else []
    with row[2]:
        help_ = "Whose attention is drawn: the token that decides, or another one that the method computes"
        at = controls.choose(
            "Query token", [DECIDES, *asked], "row-token", format_func=lambda i: computed.get(i, i), help=help_
        )
    token = None if at == DECIDES else int(at)
    if st.session_state.pop("row-kept", False):
        st.caption(
            "That token is reused: nothing computes what it attends to. Those that are not underlined have a row."
        )
    one = {} if kind == "play" else _some_heads(live, method)
    show.explain(
        "How much of a token's attention falls on each token: dense, the method, and what it adds or takes away; exact "
        "values on hover. A click on a token asks for its own row.",
        "The **decision row** is the softmax row of the token that emits the label, under *All heads* its mean over "
        "layers and heads. What is underlined is reused. In the difference orange is more than dense, blue is less. "
        "Kept tokens have no row: nothing computes what they attend to.",
    )
    comparable = method != base and tokens(method) == tokens(base)
    if kind == "play":
        layer, head = _open(live)
        explorer = replace(live.comparison.explore(*([method] if comparable else [])), layer=layer, head=head)
        st.iframe(explorer.page(show.dark()), height=HEIGHT, alt="the prompt, layer by layer and head by head")
        show.download("Page as HTML", lambda: explorer.page().encode(), "explore.html", "explore")
        return method
    name = show.short_key("row", method, at, *map(str, one.values()))
    shaded = live_run.text(live, tuple(dict.fromkeys((base, method))), difference=comparable, token=token, **one)
    data = pd.DataFrame({"token": tokens(method), "share": shaded.panels[int(method != base)].row})
    fig = plots.decision_row(tokens(method), data["share"].to_numpy(), plan.layout.segments)
    if kind == "text":
        token_click.text(shaded, "live-text", partial(_ask, asked, plan.layout.decisions))
        show.exports(name, fig, data, text=shaded)
    else:
        show.figure(fig, name, data)
    return method


def _ask(asked: list[str], decisions: tuple[int, ...], token: int) -> None:
    """Has the row of a clicked token drawn, where the method computes it."""
    if str(token) in asked or token in decisions:
        st.session_state["row-token"] = DECIDES if token in decisions else str(token)
    st.session_state["row-kept"] = token not in decisions and str(token) not in asked


def _some_heads(live: Live, method: str) -> dict[str, Any]:
    """Of which heads the row is the mean, as `Comparison.text` is told."""
    several = len(live.methods) > 1 and live.prompt.n > 1
    row = st.columns([6, 1, 1, 1], vertical_alignment="bottom")
    with row[0]:
        heads = controls.named("Heads", {k: v for k, v in HEADS.items() if k != "top" or several}, "heads")
    layers, count = live.rows[method].shape[:2]
    with row[1]:
        layer = controls.number("Layer", "row-layer", layers, layers // 2, disabled=heads in ("mean", "top"))
    with row[2]:
        head = controls.number("Head", "row-head", count, 0, disabled=heads != "one")
    if heads == "top":
        ranked = live_run.heads(live, method if method != live.methods[0] else live.methods[1]).head(TOP)
        return {"heads": list(zip(ranked["layer"], ranked["head"], strict=True))}
    return {"layer": None if heads == "mean" else layer, "head": head if heads == "one" else None}


def _heads(live: Live) -> None:
    st.subheader("Slot mass by layer and head", anchor=False)
    views = {"mass": "Mass", "change": "Change against dense"}
    view = controls.named("Shown", views, "live-view", label_visibility="collapsed")
    values = live.heads()
    change = view == "change"
    if change:
        dense: Any = values[values["method"] == "dense"].drop(columns="method")
        both = values[values["method"] != "dense"].merge(dense, on=["slot", "layer", "head"], suffixes=("", "_dense"))
        logs = [np.log(both[c].clip(lower=MASS_FLOOR)) for c in ("value", "value_dense")]
        values = both.assign(value=logs[0] - logs[1]).drop(columns="value_dense")
        if values.empty:
            show.empty("Choose a method beside dense to see a change.")
            return
    show.explain(
        "What each head pays each slot; all panels share one scale. A click opens a head in the row above.",
        f"{words.SLOT_MASS}\n\n{words.CHANGE}",
    )
    fig = plots.slot_mass_grid(values, list(dict.fromkeys(values["method"])), change=change)
    show.picked(
        clickable(fig, _open(live)),
        f"live-heads-{view}",
        values,
        lambda p: _choose(*map(int, p["customdata"][1:])),
        fig,
    )


def influence(live: Live, method: str) -> None:
    """The plan's influence graph."""
    st.subheader("Who can influence whom", anchor=False)
    graph = live.influence(method)
    names, reaches, decision = graph.names, graph.reaches.numpy(), graph.decision.numpy()
    show.explain(
        "Above: what later candidates hold. Below: the decision.",
        "An arc above says that a candidate can change what a later one holds; below, that it can change the decision. "
        "Exact for any weights: reachability through every attention edge that the plan leaves open, layer by layer. "
        "Kept KV takes in nothing, and brings what its block had seen. That a path exists does not say how much runs "
        "through it.",
    )
    table = pd.DataFrame(reaches, index=list(names), columns=list(names)).rename_axis("from").reset_index()
    show.figure(plots.influence_graph(names, reaches, decision), show.short_key("influence", method), table)
    with st.expander("In words"):
        show.verbatim(graph)


def blocks(live: Live, method: str) -> None:
    """The block matrix of the head that the widgets say, computed when it is asked for."""
    st.subheader("Block matrix", anchor=False)
    show.explain(
        "What the tokens of each segment attend to, segment by segment, in one head.",
        "A row is the mean over a segment's computed tokens of where their attention goes; rows sum to one. Kept ones "
        "have no queries. Beside it: a head that attends evenly to all it may see.",
    )
    if not controls.switch("Compute it", "blocks"):
        return
    layers, heads = live.rows[method].shape[:2]
    row = st.columns([1, 1, 4])
    with row[0]:
        layer = controls.number("Layer", "block-layer", layers, layers // 2)
    with row[1]:
        head = controls.number("Head", "block-head", heads)
    matrix(live, method, layer, head, show.short_key("blocks", method, layer, head))


def matrix(live: Live, method: str, layer: int, head: int, key: str) -> None:
    """The block matrix of one head beside even attention."""
    own, even, names = live_run.matrix(live, method, layer, head)
    table = pd.DataFrame(own, index=list(names), columns=list(names)).rename_axis("of").reset_index()
    show.figure(plots.block_matrix(own, names, even), key, table)
